"""What optimizers do: the same op over a list of tensors, in place or not.

A list that holds one tensor of a repeated block stands for all of them: each tensor made here belongs to the block that
owns the tensor it is made from.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

from weigh.dims import Shape, Size
from weigh.dtypes import FLOAT32, DType, promote
from weigh.ghost.ops.creation import new_like
from weigh.ghost.ops.table import Op
from weigh.ghost.state import inside_unit, state
from weigh.ghost.tensor import Tensor, empty


class Foreach(Op):
    """`torch._foreach_*` that makes a new tensor for each in the list; named by the op it does."""

    name = "aten::_foreach"

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, op: str) -> Tensor:
        return new_like(x, op)


def foreach(op: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """A new tensor like each of `tensors`, as `torch._foreach_sqrt` makes them."""
    made: list[Tensor] = []
    for x in tensors:
        with inside_unit(x.storage.unit):
            made.append(Foreach.forward(None, x, op=op))
        moved = x.numel * x.dtype.itemsize
        state.ledger.call(op, x.numel, moved, moved, x.storage.unit)
    state.ledger.cut()
    return made


def foreach_norm(tensors: Sequence[Tensor]) -> list[Tensor]:
    """`torch._foreach_norm`: a scalar of each tensor's dtype."""
    made: list[Tensor] = []
    for x in tensors:
        unit = x.storage.unit
        made.append(empty((), x.dtype, "aten::_foreach_norm", unit=unit))
        state.ledger.call("aten::_foreach_norm", 2 * x.numel, x.numel * x.dtype.itemsize, x.dtype.itemsize, unit)
    state.ledger.cut()
    return made


def in_place(op: str, tensors: Sequence[Tensor], reads: int = 1, flops: int = 1) -> None:
    """Note an in-place op over a list: `reads` tensors of each one's size are read, one is written."""
    for x in tensors:
        moved = x.numel * x.dtype.itemsize
        state.ledger.call(op, x.numel * flops, moved * reads, moved, x.storage.unit)


def zeros_like(x: Tensor, purpose: str, dtype: DType | None = None) -> Tensor:
    """`torch.zeros_like(x)`, for what an optimizer keeps beside `x`."""
    with inside_unit(x.storage.unit):
        made = new_like(x, "aten::zeros_like", dtype)
    made.storage.relabel(purpose, x.storage.path)
    return made


def norm_along(x: Tensor, dim: int) -> Tensor:
    """`torch.norm(x, dim=dim, keepdim=True)`."""
    shape = list(x.shape)
    shape[dim] = 1
    made = empty(tuple(shape), x.dtype, "aten::norm")
    state.ledger.call("aten::norm", 2 * x.numel, x.numel * x.dtype.itemsize, made.num_bytes)
    return made


def kept_beside(x: Tensor, shape: Shape, dtype: DType, purpose: str, op: str = "aten::zeros") -> Tensor:
    """A tensor of another shape or dtype that an optimizer keeps beside `x`."""
    made = empty(shape, dtype, op, unit=x.storage.unit)
    made.storage.relabel(purpose, x.storage.path)
    return made


def scalar_state(x: Tensor, purpose: str) -> Tensor:
    """A single fp32 number beside `x`: the step counter of fused optimizers."""
    return kept_beside(x, (), FLOAT32, purpose)


def stack_scalars(scalars: Sequence[Tensor], count: Size) -> Tensor:
    """`torch.stack` of `count` scalars (more than `scalars` holds where some stand for many), in the widest dtype."""
    made = empty((count,), reduce(promote, (x.dtype for x in scalars)), "aten::stack")
    state.ledger.call("aten::stack", 0, made.num_bytes, made.num_bytes)
    return made
