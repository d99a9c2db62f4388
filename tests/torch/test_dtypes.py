"""The recorded tables are still what the installed PyTorch says."""

import json
from pathlib import Path

import pytest
import torch

from weigh import dtypes

pytestmark = pytest.mark.torch

PROMOTION = json.loads((Path(__file__).parent.parent / "data" / "torch_promotion.json").read_text())["table"]


@pytest.mark.parametrize("a", PROMOTION)
def test_the_recorded_promotion_table_is_current(a: str) -> None:
    for b, recorded in PROMOTION[a].items():
        try:
            joined = str(torch.promote_types(getattr(torch, a), getattr(torch, b))).removeprefix("torch.")
        except RuntimeError:
            joined = None
        assert joined == recorded, (a, b)


@pytest.mark.parametrize("name", PROMOTION)
def test_sizes_and_limits_are_pytorchs(name: str) -> None:
    real, ours = getattr(torch, name), dtypes.get(name)
    assert ours.itemsize == real.itemsize
    if real.is_floating_point:
        info = torch.finfo(real)
        assert (ours.max, ours.min_normal) == (info.max, info.smallest_normal)
        # PyTorch 2.13 prints 0.125 for e5m2fnuz; with two bits of mantissa it is 0.25, as ml_dtypes has it.
        assert ours.epsilon == (0.25 if name == "float8_e5m2fnuz" else info.eps)
    elif name != "bool" and not real.is_complex:
        assert ours.max == torch.iinfo(real).max
