"""Functions of single numbers that some activations and position scales are made of."""

from __future__ import annotations

from typing import Any

from weigh.dtypes import BOOL
from weigh.ghost.ops.indexing import where
from weigh.ghost.ops.pointwise import div, elementwise, like, mul
from weigh.ghost.ops.table import CUDA_FP32, Op, apply
from weigh.ghost.tensor import Tensor


class Floor(Op):
    """`torch.floor(x)`, outside autograd."""

    name = "aten::floor"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return like("aten::floor", x)


class Expm1(Op):
    """`torch.expm1(x)`: `grad * (result + 1)`."""

    name = "aten::expm1"
    source = "derivatives.yaml: expm1"
    autocast = CUDA_FP32

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = like("aten::expm1", x)
        if ctx:
            ctx.save_output(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        (result,) = ctx.unpack()
        factor = result + 1
        return [mul(grad, factor)]


class Minimum(Op):
    """`torch.min(a, b)`: `where(a == b, grad / 2, grad).masked_fill_(a > b, 0)`, and the other way round."""

    name = "aten::minimum"
    source = "derivatives.yaml: minimum"

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        if ctx:
            ctx.save(a, b)
        return elementwise("aten::minimum", a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        a, b = ctx.unpack()
        return [_share(grad, a, b) if need else None for need in ctx.needs]


class Equal(Op):
    """`a == b`."""

    name = "aten::eq"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        return elementwise("aten::eq", a, b, BOOL)


def _share(grad: Tensor, a: Tensor, b: Tensor) -> Tensor:
    half = div(grad, 2.0)
    same = equal(a, b)
    result = where(same, half, grad)
    larger = equal(a, b)  # `a > b`, which costs the same
    del half, same, larger
    return result


def floor(x: Tensor) -> Tensor:
    """`torch.floor(x)`."""
    return apply(Floor, x)  # type: ignore[no-any-return]


def expm1(x: Tensor) -> Tensor:
    """`torch.expm1(x)`."""
    return apply(Expm1, x)  # type: ignore[no-any-return]


def equal(a: Tensor, b: Tensor) -> Tensor:
    """`a == b`."""
    return apply(Equal, a, b)  # type: ignore[no-any-return]


def minimum(a: Tensor, b: Tensor) -> Tensor:
    """`torch.min(a, b)`."""
    return apply(Minimum, a, b)  # type: ignore[no-any-return]
