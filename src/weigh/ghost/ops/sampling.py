"""What a router does that draws one expert at a time: noise, thresholds, chosen scores struck out."""

from __future__ import annotations

from typing import Any

from weigh.dtypes import BOOL
from weigh.ghost.ops.pointwise import elementwise, like, mul
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.tensor import Tensor, empty


class RandLike(Op):
    """`torch.rand_like(x)`, and `torch.empty_like(x)` filled with noise."""

    name = "aten::rand_like"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return like("aten::rand_like", x)


class ClampMin(Op):
    """`x.clamp(min=low)` of two tensors, outside autograd."""

    name = "aten::clamp.min"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor) -> Tensor:
        return elementwise("aten::clamp", x, low)


class LogicalOr(Op):
    """`torch.logical_or(a, b)`."""

    name = "aten::logical_or"
    differentiable = 0

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        return elementwise("aten::logical_or", a, b, BOOL)


class ScatterValue(Op):
    """`torch.scatter(x, -1, index, number)`: a contiguous copy. The gradient is one too, with zeros put in."""

    name = "aten::scatter.value"
    source = "derivatives.yaml: scatter.value"

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        if ctx:
            ctx.save(index)
        return empty(x.shape, x.dtype, "aten::scatter")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        (index,) = ctx.unpack()
        return [scatter_value(grad, index), None]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> int:
        return 0


class SampledMultiplier(Op):
    """Phi-MoE's own `torch.autograd.Function`: the chosen scores times a mask, with a gradient for all scores."""

    name = "PhimoeMultiplier"
    source = "transformers/models/phimoe/modeling_phimoe.py, PhimoeMultiplier"

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, multiplier: Tensor, selected_experts: Tensor, masked_gates: Tensor, mask: Tensor
    ) -> Tensor:
        if ctx:
            ctx.save(multiplier, selected_experts, masked_gates)
        return mul(multiplier.alias(), mask.alias())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        multiplier, _selected_experts, masked_gates = ctx.unpack()
        grad = mul(grad, multiplier)
        grad_at_scores_expanded = mul(masked_gates, mul(grad, -1))
        return [grad_at_scores_expanded, None, None, None, None]


def rand_like(x: Tensor) -> Tensor:
    """`torch.rand_like(x)`."""
    return apply(RandLike, x)  # type: ignore[no-any-return]


def clamp_min(x: Tensor, low: Tensor) -> Tensor:
    """`x.clamp(min=low)`."""
    return apply(ClampMin, x, low)  # type: ignore[no-any-return]


def logical_or(a: Tensor, b: Tensor) -> Tensor:
    """`torch.logical_or(a, b)`."""
    return apply(LogicalOr, a, b)  # type: ignore[no-any-return]


def scatter_value(x: Tensor, index: Tensor) -> Tensor:
    """`torch.scatter(x, -1, index, number)`."""
    return apply(ScatterValue, x, index)  # type: ignore[no-any-return]


def sampled_multiplier(
    scores: Tensor, multiplier: Tensor, selected_experts: Tensor, masked_gates: Tensor, mask: Tensor
) -> Tensor:
    """`PhimoeMultiplier.apply`."""
    return apply(SampledMultiplier, scores, multiplier, selected_experts, masked_gates, mask)  # type: ignore[no-any-return]
