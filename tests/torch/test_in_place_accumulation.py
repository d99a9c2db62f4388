"""Where PyTorch sums gradients in place, and where not: measured by the allocator, without a dispatch mode in the way.

The engine adds a second gradient into the first only where it holds the only reference to the first and to its
storage (input_buffer.cpp, `can_accumulate_inplace`). A gradient that is a view keeps its base, and with that a second
reference: so the gradient of a linear layer's weight, which is a transposed view, is never added into. A tied embedding
therefore costs three times its size while its two gradients are summed, in a real run as under a dispatch mode.
"""

from __future__ import annotations

from typing import Any

import pytest
from support import ghost_side, in_place_programs
from support.client import Witness
from support.inputs import Input

pytestmark = pytest.mark.torch

WEIGHTS = {
    # program: copies of the weight that live at the peak of the backward pass; with a mode, without
    "in place: embedding and head": (3, 3),
    "in place: two embeddings": (3, 2),
    "in place: three embeddings": (3, 2),
    "in place: two heads": (3, 3),
    "in place: two products": (5, 4),
    "in place: two turned products": (5, 5),
}
"""The products also hold their result and the gradient to start from, each of the weight's size."""


def plain(shape: tuple[int, ...], dtype: str, grad: bool) -> Input:
    strides, step = [], 1
    for size in reversed(shape):
        strides.insert(0, step)
        step *= size
    return {"shape": list(shape), "strides": strides, "size": step, "dtype": dtype, "grad": grad}


def request(name: str, mode: bool) -> dict[str, Any]:
    shape = (in_place_programs.ROWS, in_place_programs.WIDTH)
    inputs = [plain((2,), "int64", False), plain((2, shape[1]), "float32", False), plain(shape, "float32", True)]
    return {"program": name, "device": "cpu", "inputs": inputs, "attributes": {}, "seed": "dense", "mode": mode}


@pytest.mark.parametrize("mode", [True, False], ids=["dispatch mode", "no mode"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_the_sum_of_two_gradients(name: str, mode: bool, witness: Witness) -> None:
    real = witness.ask(request(name, mode))
    real_peak = max(real["backward"]) if mode else real["peak of backward"]
    ours = max(ghost_side.measure(request(name, mode))["backward"])
    small = in_place_programs.WEIGHT_BYTES // 8
    assert abs(ours - real_peak) <= 16  # numbers that products save are tensors of eight bytes each
    assert real_peak - small <= WEIGHTS[name][not mode] * in_place_programs.WEIGHT_BYTES <= real_peak + small
