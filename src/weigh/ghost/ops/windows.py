"""What sliding windows need: a comparison for their mask, a roll for their cache."""

from __future__ import annotations

from typing import Any

from weigh.dims import Size
from weigh.dtypes import BOOL
from weigh.ghost.ops.pointwise import elementwise
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.tensor import Tensor, empty


class Greater(Op):
    """`a > b`: booleans, no gradient."""

    name = "aten::gt"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        return elementwise("aten::gt", a, b, BOOL)


class Roll(Op):
    """`x.roll(n, dim)`: a contiguous copy."""

    name = "aten::roll"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return empty(x.shape, x.dtype, "aten::roll")

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 0


def greater(a: Tensor, b: Tensor) -> Tensor:
    """`a > b`."""
    return apply(Greater, a, b)  # type: ignore[no-any-return]


def roll(x: Tensor) -> Tensor:
    """`x.roll(n, dim)`."""
    return apply(Roll, x)  # type: ignore[no-any-return]
