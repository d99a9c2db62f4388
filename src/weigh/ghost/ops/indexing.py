"""Picking, placing and ordering by index: what masks, caches and samplers do."""

from __future__ import annotations

from typing import Any

from weigh.dims import Shape, Size
from weigh.dtypes import INT64
from weigh.ghost.ops.pointwise import broadcast, output_strides, result_dtype
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.tensor import Tensor, empty


class Where(Op):
    """`torch.where(condition, a, b)`. Saves the condition; each gradient is `where(condition, grad, 0)`."""

    name = "aten::where"
    source = "derivatives.yaml: where.self"

    @staticmethod
    def forward(ctx: Any, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
        if ctx:
            ctx.save(condition)
        shape = broadcast(condition.shape, broadcast(a.shape, b.shape))
        return empty(shape, result_dtype(a, b), "aten::where", output_strides(shape, (condition, a, b)))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        from weigh.ghost.ops.creation import scalar_tensor

        (condition,) = ctx.unpack()
        left = where(condition, grad, scalar_tensor(grad.dtype)) if ctx.needs[1] else None
        return [None, left, where(condition, scalar_tensor(grad.dtype), grad) if ctx.needs[2] else None]


class Argmax(Op):
    """`x.argmax(-1)`: int64, no gradient."""

    name = "aten::argmax"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return empty(x.shape[:-1], INT64, "aten::argmax")

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return tensors[0].numel  # type: ignore[no-any-return]


class Topk(Op):
    """`torch.topk(x, k)`: values and int64 indices, which are saved."""

    name = "aten::topk"
    source = "derivatives.yaml: topk"

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, k: int) -> list[Tensor]:
        shape = (*x.shape[:-1], k)
        values, indices = empty(shape, x.dtype, "aten::topk"), empty(shape, INT64, "aten::topk")
        if ctx:
            ctx.save_output(indices)
        return [values, indices]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        from weigh.ghost.ops.experts import ValueSelectingBackward

        (indices,) = ctx.unpack()
        return [apply(ValueSelectingBackward, grad, indices, shape=ctx.inputs[0][0])]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return tensors[0].numel  # type: ignore[no-any-return]


class IndexSelect(Op):
    """`x.index_select(0, index)`: a contiguous copy of the rows picked. Saves the index; adds into zeros."""

    name = "aten::index_select"
    source = "derivatives.yaml: index_select"

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        if ctx:
            ctx.save(index)
        return empty((index.shape[0], *x.shape[1:]), x.dtype, "aten::index_select")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        (index,) = ctx.unpack()
        zeros = empty(ctx.inputs[0][0], grad.dtype, "aten::new_zeros")
        return [index_add_(zeros, index, grad), None]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 0


class RepeatInterleave(Op):
    """`x.repeat_interleave(n, dim)`."""

    name = "aten::repeat_interleave"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, repeats: int, dim: int) -> Tensor:
        shape = (*x.shape[:dim], x.shape[dim] * repeats, *x.shape[dim + 1 :])
        return empty(shape, x.dtype, "aten::repeat_interleave")

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 0


class Stack(Op):
    """`torch.stack(tensors, dim=1)`, no gradient."""

    name = "aten::stack"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        first = tensors[0]
        return empty((first.shape[0], len(tensors), *first.shape[1:]), first.dtype, "aten::stack")

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 0


class Gather(Op):
    """`x.gather(1, index)`, or `x[rows, index]`: as many rows as the index has. Saves both."""

    name = "aten::gather"
    source = "derivatives.yaml: gather"

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, *, shape: Shape) -> Tensor:
        if ctx:
            ctx.save(x, index)
        return empty(shape, x.dtype, "aten::gather")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        from weigh.ghost.ops.experts import GatherBackward

        _x, index = ctx.unpack()
        return [apply(GatherBackward, grad, index, shape=ctx.inputs[0][0]), None]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 0


class Nonzero(Op):
    """`torch.where(condition)`: where a matrix is true, one row a dimension; how often is not known without values."""

    name = "aten::nonzero"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, condition: Tensor, *, count: Size) -> Tensor:
        return empty((len(condition.shape), count), INT64, "aten::nonzero")


class IndexAddInPlace(Op):
    """`x.index_add_(0, index, source)`: the same storage. Saves both; the source's gradient is picked by the index."""

    name = "aten::index_add_"
    source = "derivatives.yaml: index_add"

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, source: Tensor) -> Tensor:
        if ctx and ctx.needs[2]:
            ctx.save(index, source)
        return x.alias()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        picked = index_select(grad, ctx.unpack()[0]) if ctx.needs[2] else None
        return [grad if ctx.needs[0] else None, None, picked]


def nonzero(condition: Tensor, count: Size) -> Tensor:
    """`torch.where(condition)` that finds `count`: (dimensions, count)."""
    return apply(Nonzero, condition, count=count)  # type: ignore[no-any-return]


def index_add_(x: Tensor, index: Tensor, source: Tensor) -> Tensor:
    """`x.index_add_(0, index, source)`: `x` must not be used again."""
    return apply(IndexAddInPlace, x, index, source)  # type: ignore[no-any-return]


def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`torch.where(condition, a, b)`."""
    return apply(Where, condition, a, b)  # type: ignore[no-any-return]


def argmax(x: Tensor) -> Tensor:
    """`x.argmax(-1)`."""
    return apply(Argmax, x)  # type: ignore[no-any-return]


def topk(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`torch.topk(x, k)` over the last dimension."""
    values, indices = apply(Topk, x, k=k)
    return values, indices


def index_select(x: Tensor, index: Tensor) -> Tensor:
    """`x.index_select(0, index)`."""
    return apply(IndexSelect, x, index)  # type: ignore[no-any-return]


def repeat_interleave(x: Tensor, repeats: int, dim: int = 0) -> Tensor:
    """`x.repeat_interleave(repeats, dim)`."""
    return apply(RepeatInterleave, x, repeats=repeats, dim=dim)  # type: ignore[no-any-return]


def gather(x: Tensor, index: Tensor, shape: Shape) -> Tensor:
    """`x.gather(1, index)`; `shape` is the output's."""
    return apply(Gather, x, index, shape=shape)  # type: ignore[no-any-return]


def stack(tensors: list[Tensor]) -> Tensor:
    """`torch.stack(tensors, dim=1)`."""
    return apply(Stack, *tensors)  # type: ignore[no-any-return]


def new_with_length(x: Tensor, length: Size) -> Tensor:
    """What `torch.cat` has made of keys or values (batch, heads, ..., width) once they are `length` long."""
    return empty((*x.shape[:2], length, x.shape[3]), x.dtype, "aten::cat")


def index_copy_(x: Tensor, index: Tensor, source: Tensor) -> Tensor:  # noqa: ARG001  PyTorch's signature
    """`x.index_copy_(dim, index, source)`: in place, nothing new."""
    return x
