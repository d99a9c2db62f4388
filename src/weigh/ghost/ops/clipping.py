"""Values clipped in place."""

from __future__ import annotations

from typing import Any

from weigh.dtypes import BOOL
from weigh.ghost.ops.creation import new_like, scalar_tensor
from weigh.ghost.ops.indexing import where
from weigh.ghost.ops.pointwise import like
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.tensor import Tensor


class ClampInPlace(Op):
    """`x.clamp_(low, high)`: the same storage. A copy from before is saved, to know where the gradient passes."""

    name = "aten::clamp_"
    source = "derivatives.yaml: clamp; VariableType keeps `original_self = self.clone()`"

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if ctx:
            ctx.save(new_like(x, "aten::clone"))
        return x.alias()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        (original,) = ctx.unpack()
        zero = scalar_tensor(grad.dtype)
        inside = like("aten::ge", original, BOOL)
        below = like("aten::le", original, BOOL)  # joined into `inside` in place, and alive until the expression ends
        gradient = where(inside, grad, zero)
        del below
        return [gradient]


def clamp_(x: Tensor) -> Tensor:
    """`x.clamp_(low, high)`: `x` must not be used again."""
    return apply(ClampInPlace, x)  # type: ignore[no-any-return]
