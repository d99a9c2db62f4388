"""Plans of tensor parallelism beside transformers' own."""

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from weigh.models import FAMILIES
from weigh.techniques.tensor_plans import COLUMN, COLUMN_WHOLE, PLANS, ROW, ROW_WHOLE

pytestmark = pytest.mark.torch

FREE = "replicated_with_grad_allreduce"
"""Norms between cut layers, whose gradients are summed in place."""


@pytest.mark.parametrize("family", sorted(PLANS))
def test_the_plan_is_that_of_transformers(family: str) -> None:
    theirs = CONFIG_MAPPING[family].base_model_tp_plan
    cut = {key.removeprefix("layers.*."): style for key, style in theirs.items() if style != FREE}
    assert cut == dict(PLANS[family])
    assert family in FAMILIES
    assert set(cut.values()) <= {COLUMN, ROW, COLUMN_WHOLE, ROW_WHOLE}
