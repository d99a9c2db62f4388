"""Sums and means."""

from __future__ import annotations

from typing import Any

from weigh.dims import Shape, Size
from weigh.dtypes import BOOL, FLOAT32, INT64, DType
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.state import state
from weigh.ghost.tensor import Tensor, empty


class Sum(Op):
    """`x.sum(dims, keepdim)`. SumBackward1: the gradient expanded, a view."""

    name = "aten::sum"

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, dims: tuple[int, ...], keepdim: bool, dtype: DType) -> Tensor:
        if ctx:
            ctx.meta = dims, keepdim
        return empty(_reduced(x.shape, dims, keepdim), dtype, "aten::sum")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [_expand_back(grad, ctx.inputs[0][0], *ctx.meta)]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return tensors[0].numel  # type: ignore[no-any-return]


class Mean(Op):
    """`x.mean(dims, keepdim)`. mean_backward: the gradient expanded (a view), divided by the count (a full tensor)."""

    name = "aten::mean"
    source = "FunctionsManual.cpp, mean_backward"

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, dims: tuple[int, ...], keepdim: bool) -> Tensor:
        if ctx:
            ctx.meta = dims, keepdim
        return empty(_reduced(x.shape, dims, keepdim), x.dtype, "aten::mean")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [_expand_back(grad, ctx.inputs[0][0], *ctx.meta) / 1.0]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return tensors[0].numel  # type: ignore[no-any-return]


class Var(Op):
    """`x.var(dims, unbiased=False, keepdim=True)`. var_backward: `(2 / n) * grad * (x - x.mean(dims, True))`."""

    name = "aten::var"
    source = "derivatives.yaml: var.correction; FunctionsManual.cpp, var_backward"

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, dims: tuple[int, ...]) -> Tensor:
        if ctx:
            ctx.save(x)
            ctx.meta = dims
        return empty(_reduced(x.shape, dims, True), x.dtype, "aten::var")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        (x,) = ctx.unpack()
        mean = apply(Mean, x, dims=ctx.meta, keepdim=True)
        centred = x - mean
        return [(grad * 1.0) * centred]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 3 * tensors[0].numel  # type: ignore[no-any-return]


class VectorNorm(Op):
    """`torch.linalg.vector_norm(x, dim=dims)`, outside autograd."""

    name = "aten::linalg_vector_norm"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, dims: tuple[int, ...]) -> Tensor:
        return empty(_reduced(x.shape, dims, False), x.dtype, "aten::linalg_vector_norm")

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 2 * tensors[0].numel  # type: ignore[no-any-return]


class Cumsum(Op):
    """`x.cumsum(-1)` of whole numbers, outside autograd; booleans are counted in int64."""

    name = "aten::cumsum"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return empty(x.shape, INT64 if x.dtype is BOOL else x.dtype, "aten::cumsum")


def cumsum(x: Tensor) -> Tensor:
    """`x.cumsum(-1)`."""
    return apply(Cumsum, x.alias())  # type: ignore[no-any-return]


def vector_norm(x: Tensor, dim: int | None = None) -> Tensor:
    """`torch.linalg.vector_norm(x, dim=dim)`, over everything without one."""
    dims = tuple(range(len(x.shape))) if dim is None else (dim,)
    return apply(VectorNorm, x.alias(), dims=dims)  # type: ignore[no-any-return]


def _reduced(shape: Shape, dims: tuple[int, ...], keepdim: bool) -> Shape:
    if keepdim:
        return tuple(1 if i in dims else s for i, s in enumerate(shape))
    return tuple(s for i, s in enumerate(shape) if i not in dims)


def _expand_back(grad: Tensor, shape: Shape, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    if not keepdim:
        for dim in dims:
            grad = grad.unsqueeze(dim)
    return grad.expand(*shape)


def sum(x: Tensor, dims: tuple[int, ...], keepdim: bool = False) -> Tensor:
    """`x.sum(dims, keepdim)`. Under autocast on CUDA it sums into fp32 (autocast_mode.h, `fp32_set_opt_dtype`)."""
    dtype = INT64 if x.dtype is BOOL else x.dtype
    if x.dtype.kind == "float" and state.autocast is not None and state.overrides.get("device") != "cpu":
        dtype = FLOAT32
    places = tuple(d % len(x.shape) for d in dims)
    return apply(Sum, x, dims=places, keepdim=keepdim, dtype=dtype)  # type: ignore[no-any-return]


def mean(x: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """`x.mean(dim, keepdim)`."""
    return apply(Mean, x, dims=(dim % len(x.shape),), keepdim=keepdim)  # type: ignore[no-any-return]


def var(x: Tensor, dim: int) -> Tensor:
    """`x.var(dim, unbiased=False, keepdim=True)`."""
    return apply(Var, x, dims=(dim % len(x.shape),))  # type: ignore[no-any-return]


def sum_to_size(x: Tensor, shape: Shape) -> Tensor:
    """`x` summed to a shape that broadcasts to its own (ExpandUtils.h, `sum_to`)."""
    lead = len(x.shape) - len(shape)
    dims = list(range(lead))
    for place, size in enumerate(shape):
        whole = x.shape[place + lead]
        if size is not whole and size == 1 and whole != 1:
            dims.append(place + lead)
    if dims:
        x = sum(x, tuple(dims), keepdim=True)
    return x.view(*shape) if lead else x
