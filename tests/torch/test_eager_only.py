"""Which families have no sdpa: what the classes of transformers say of themselves."""

from importlib import import_module

import pytest
import transformers
from architectures import ARCHITECTURES, Architecture

from weigh.errors import WeighError
from weigh.models import EAGER_ONLY


def _runs(architecture: Architecture) -> bool:
    try:
        return not architecture.build().unmodelled
    except WeighError:
        return False


RUNNING = [a for a in {a.model_type: a for a in ARCHITECTURES}.values() if _runs(a)]


@pytest.mark.parametrize("architecture", RUNNING, ids=lambda a: a.name)
def test_transformers_says_the_same(architecture: Architecture) -> None:
    supports = getattr(transformers, architecture.name)._supports_sdpa
    assert supports == (architecture.model_type not in EAGER_ONLY)
from weigh.models import EAGER_ONLY, FAMILIES
from weigh.models.common import CausalModel

CLASSES = {
    **modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    **modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    **modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
}


def runs(family: str) -> bool:
    """The family's file has a class that says how it runs."""
    found = [c for c in vars(import_module(FAMILIES[family])).values() if isinstance(c, type)]
    return any(issubclass(c, CausalModel) and c.forward is not CausalModel.forward for c in found)


@pytest.mark.parametrize("family", sorted(filter(runs, FAMILIES.keys() & CLASSES.keys())))
def test_transformers_says_the_same(family: str) -> None:
    assert getattr(transformers, CLASSES[family])._supports_sdpa == (family not in EAGER_ONLY)
