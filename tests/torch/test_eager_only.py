"""Which families have no sdpa: what the classes of transformers say of themselves."""

import pytest
import transformers
from transformers.models.auto import modeling_auto

from weigh.models import EAGER_ONLY, FAMILIES

CLASSES = {
    **modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    **modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    **modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_says_the_same(family: str) -> None:
    assert getattr(transformers, CLASSES[family])._supports_sdpa == (family not in EAGER_ONLY)
