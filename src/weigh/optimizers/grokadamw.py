"""GrokAdamW, as `grokadamw/grokadamw.py` (0.1.2) does it.

Three states of each parameter's dtype are on the host. For a parameter's turn they are copied to the device, where its
gradient's norm is clipped, and back.
"""

from __future__ import annotations

from weigh.ghost import ops
from weigh.ghost.nn import Parameter
from weigh.ghost.tensor import Tensor
from weigh.optimizers.base import Optimizer

STATES = 3
"""`exp_avg`, `exp_avg_sq` and `grok_ema`."""
ON_HOST = "optimizer states of GrokAdamW, on the host"


class GrokAdamW(Optimizer):
    """`grokadamw.GrokAdamW`."""

    implementations = ("forloop",)

    def own(self, parameters: list[Parameter]) -> None:
        """Take charge of these parameters; their states are on the host."""
        super().own(parameters)
        held = sum(p.count * p.tensor.num_bytes for p in parameters)
        self.elsewhere[ON_HOST] = self.elsewhere.get(ON_HOST, 0) + STATES * held

    def new_state(self, param: Tensor) -> list[Tensor]:
        """None on the device."""
        return []

    def forloop(self) -> None:
        for param, grad in self.gradients_one_by_one():
            # Names keep what a turn made into the next parameter's turn.
            exp_avg, exp_avg_sq = ops.like("aten::_to_copy", param), ops.like("aten::_to_copy", param)
            grok_ema = ops.like("aten::_to_copy", param)
            _clip(grad)
            ops.in_place("aten::add_", [grok_ema], reads=2, flops=3)
            grok_grad = _grok_gradient(grad, grok_ema)
            ops.in_place("aten::add_", [exp_avg], reads=2, flops=3)
            ops.in_place("aten::addcmul_", [exp_avg_sq], reads=2, flops=4)
            denom = ops.sqrt(exp_avg_sq)
            ops.in_place("aten::addcdiv_", [param], reads=4, flops=4)
            del denom
        del grad, exp_avg, exp_avg_sq, grok_ema, grok_grad


def _grok_gradient(grad: Tensor, grok_ema: Tensor) -> Tensor:
    scaled = ops.mul(grok_ema, 1.0)
    return ops.add(grad, scaled)


def _clip(grad: Tensor) -> None:
    """`clip_grad_norm_` of one parameter."""
    norms = ops.foreach_norm([grad])
    stacked = ops.stack_scalars(norms, 1)
    total_norm = ops.vector_norm(stacked)
    del stacked, norms
    shifted = total_norm + 1e-6
    inverse = ops.reciprocal(shifted)
    clip_coef = inverse * 1.0
    del shifted, inverse
    clip_coef_clamped = ops.clamp(clip_coef)
    ops.in_place("aten::_foreach_mul_", [grad])
    del total_norm, clip_coef, clip_coef_clamped


OPTIMIZER = GrokAdamW
