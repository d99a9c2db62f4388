"""Random inputs: shapes, dtypes and layouts, as plain data that both sides can build tensors from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

Draw = Callable[[Any], Any]
Input = dict[str, Any]
"""shape, strides (in elements), size (elements of the storage), dtype (a name), grad (whether one is wanted)."""

FLOATS = ("float32", "bfloat16", "float16")
SIZES = (1, 1, 2, 3, 5, 8, 33)
"""One is common on purpose: PyTorch branches at batch 1 and at length 1."""

PLAIN, DENSE, STRIDED, ANY = range(4)
"""Layouts: contiguous; a permuted one; also with gaps, as slices have; also expanded, with strides of zero."""


def draw_shape(draw: Draw, least: int = 1, most: int = 4) -> tuple[int, ...]:
    """Between `least` and `most` dimensions."""
    return tuple(draw(st.lists(st.sampled_from(SIZES), min_size=least, max_size=most)))


def draw_broadcastable(draw: Draw, shape: Sequence[int]) -> tuple[int, ...]:
    """A shape that broadcasts to `shape`: shorter, with ones in some places."""
    lead = draw(st.integers(0, len(shape)))
    return tuple(size if draw(st.booleans()) else 1 for size in shape[lead:])


def draw_float(draw: Draw) -> str:
    """A floating-point dtype's name."""
    return str(draw(st.sampled_from(FLOATS)))


def draw_input(draw: Draw, shape: Sequence[int], dtype: str, grad: bool | None = None, layout: int = ANY) -> Input:
    """A tensor of this shape in a random layout; with a gradient or not where `grad` does not say."""
    rank = len(shape)
    order, gaps, expanded = list(range(rank))[::-1], [0] * rank, None
    if rank and layout >= DENSE and draw(st.booleans()):
        order = list(draw(st.permutations(range(rank))))
    if rank and layout >= STRIDED and draw(st.integers(0, 2)) == 0:
        gaps[draw(st.integers(0, rank - 1))] = draw(st.integers(1, 3))
    wide = [dim for dim, size in enumerate(shape) if size > 1]
    if wide and layout >= ANY and draw(st.integers(0, 4)) == 0:
        expanded = draw(st.sampled_from(wide))
    strides, step = [0] * rank, 1
    for dim in order:
        if dim != expanded:
            strides[dim] = step
            step *= shape[dim] + gaps[dim]
    if grad is None:
        grad = draw(st.booleans())
    return {"shape": list(shape), "strides": strides, "size": step, "dtype": dtype, "grad": grad}


def draw_indices(draw: Draw, shape: Sequence[int]) -> Input:
    """int64 indices, all zero."""
    return draw_input(draw, shape, "int64", grad=False, layout=PLAIN)
