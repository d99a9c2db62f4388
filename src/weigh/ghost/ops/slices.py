"""A tensor made empty and filled slice by slice, under the eyes of autograd."""

from __future__ import annotations

from typing import Any

from weigh.dims import Shape, Size
from weigh.ghost.ops.creation import new_like
from weigh.ghost.ops.pointwise import like, to
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.tensor import Tensor, empty


class NewEmpty(Op):
    """`x.new_empty(shape)`."""

    name = "aten::new_empty"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, shape: Shape) -> Tensor:
        return empty(shape, x.dtype, "aten::new_empty")

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 0


class CopySlice(Op):
    """`base[..., start:stop].copy_(source)`, where `base` is nobody else's: the same storage.

    CopySlices: a copy of the gradient, in which the slice is set to zero; and a copy of its slice, for the source.
    """

    name = "aten::copy_"
    source = "tensor.cpp, CopySlices::apply_impl and CopyBackwards::apply"

    @staticmethod
    def forward(ctx: Any, base: Tensor, source: Tensor, *, dim: int) -> Tensor:
        if ctx:
            ctx.meta = dim, source.shape[dim], base.strides
        return base.alias()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        dim, length, strides = ctx.meta
        result = empty(grad.shape, grad.dtype, "aten::new_empty_strided", strides)
        grad_slice = new_like(result.narrow(dim, length), "aten::clone")
        if ctx.needs[0]:
            like("aten::zeros_like", grad_slice)
        return [result if ctx.needs[0] else None, grad_slice if ctx.needs[1] else None]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 0


class IndexCopy(Op):
    """`x.index_copy(-1, index, source)`: a copy. Saves the index, and the source, whose shape its gradient takes."""

    name = "aten::index_copy"
    source = "derivatives.yaml: index_copy"

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, source: Tensor) -> Tensor:
        if ctx:
            ctx.save(index, source)
        return new_like(x, "aten::index_copy")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        _, source = ctx.unpack()
        return [None, None, empty(source.shape, grad.dtype, "aten::index_select")]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 0


class IndexCopyInPlace(IndexCopy):
    """`x.index_copy_(-1, index, source)`, where `x` is nobody else's and wants no gradient: the same storage."""

    name = "aten::index_copy_"

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, source: Tensor) -> Tensor:
        if ctx:
            ctx.save(index, source)
        return x.alias()


class CopySelect(Op):
    """`base[..., i].copy_(source)`, cast to the dtype of `base`, which is nobody else's: the same storage.

    As `CopySlice`, but that the slice has a dimension less.
    """

    name = "aten::copy_.select"
    source = CopySlice.source

    @staticmethod
    def forward(ctx: Any, base: Tensor, source: Tensor, *, dim: int) -> Tensor:
        if ctx:
            ctx.meta = dim, base.strides, source.dtype
        return base.alias()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        dim, strides, dtype = ctx.meta
        result = empty(grad.shape, grad.dtype, "aten::new_empty_strided", strides)
        shape = (*grad.shape[:dim], *grad.shape[dim + 1 :])
        grad_slice = empty(shape, grad.dtype, "aten::clone")
        nothing = like("aten::zeros_like", grad_slice) if ctx.needs[0] else None
        grad_source = to(grad_slice, dtype) if ctx.needs[1] else None
        del nothing
        return [result if ctx.needs[0] else None, grad_source]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 0


def new_empty(x: Tensor, shape: Shape) -> Tensor:
    """`x.new_empty(shape)`."""
    return apply(NewEmpty, x, shape=shape)  # type: ignore[no-any-return]


def copy_slice(base: Tensor, source: Tensor, dim: int) -> Tensor:
    """`base.narrow(dim, start, length).copy_(source)`: `base` must not be used again."""
    return apply(CopySlice, base, source, dim=dim % len(base.shape))  # type: ignore[no-any-return]


def copy_select(base: Tensor, source: Tensor, dim: int) -> Tensor:
    """`base.select(dim, i).copy_(source)`: `base` must not be used again."""
    return apply(CopySelect, base, source, dim=dim % len(base.shape))  # type: ignore[no-any-return]


def index_copy(x: Tensor, index: Tensor, source: Tensor) -> Tensor:
    """`x.index_copy(-1, index, source)`."""
    return apply(IndexCopy, x, index, source)  # type: ignore[no-any-return]


def index_copy_last_(x: Tensor, index: Tensor, source: Tensor) -> Tensor:
    """`x.index_copy_(-1, index, source)`, with a gradient for the source."""
    return apply(IndexCopyInPlace, x, index, source)  # type: ignore[no-any-return]
