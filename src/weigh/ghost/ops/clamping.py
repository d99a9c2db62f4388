"""What T5 does to keep fp16 finite: look for infinities, clamp between two numbers on the device."""

from __future__ import annotations

from typing import Any

from weigh.dtypes import BOOL
from weigh.ghost.ops.creation import scalar_tensor
from weigh.ghost.ops.indexing import where
from weigh.ghost.ops.pointwise import elementwise, like
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.state import state
from weigh.ghost.tensor import Tensor, empty


class Isinf(Op):
    """`torch.isinf(x)`: `x.abs() == inf`, one op where tensors are seen by a dispatch mode."""

    name = "aten::isinf"
    source = "TensorCompare.cpp, isinf"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        magnitude = None if state.traced else like("aten::abs", x)
        out = like("aten::isinf", x, BOOL)
        del magnitude
        return out


class AnyTrue(Op):
    """`x.any()`."""

    name = "aten::any"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return empty((), BOOL, "aten::any")


class ClampBetween(Op):
    """`torch.clamp(x, min=low, max=high)` with numbers on the device. Saves all three.

    clamp_backward: `where((x >= low).logical_and_(x <= high), grad, 0)`.
    """

    name = "aten::clamp.Tensor"
    source = "derivatives.yaml: clamp.Tensor; FunctionsManual.cpp, clamp_backward"

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        if ctx:
            ctx.save(x, low, high)
        return like("aten::clamp", x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        x, low, high = ctx.unpack()
        zero = scalar_tensor(grad.dtype)
        above = apply(_Within, x, low, compare="aten::ge")
        below = apply(_Within, x, high, compare="aten::le")
        inside = elementwise("aten::logical_and", above, below, BOOL) if state.traced else above
        return [where(inside, grad, zero), None, None]


class _Within(Op):
    """`x >= low`, `x <= high`."""

    name = "aten::ge.Tensor"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: Tensor, *, compare: str) -> Tensor:
        return elementwise(compare, x, limit, BOOL)


def isinf(x: Tensor) -> Tensor:
    """`torch.isinf(x)`."""
    return apply(Isinf, x)  # type: ignore[no-any-return]


def any_(x: Tensor) -> Tensor:
    """`x.any()`."""
    return apply(AnyTrue, x)  # type: ignore[no-any-return]


def clamp_between(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """`torch.clamp(x, min=low, max=high)`."""
    return apply(ClampBetween, x, low, high)  # type: ignore[no-any-return]
