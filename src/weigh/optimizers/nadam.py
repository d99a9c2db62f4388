"""NAdam, as `torch/optim/nadam.py` (2.13) does it: weight decay is not decoupled.

Keeps two tensors beside each parameter. The foreach implementation allocates a list of denominators, the loop one or
two at a time.
"""

from __future__ import annotations

from weigh.ghost import ops
from weigh.ghost.tensor import Tensor
from weigh.optimizers.base import Optimizer
from weigh.trace.events import OPTIMIZER_STATE


class NAdam(Optimizer):
    """`torch.optim.NAdam`."""

    implementations = ("foreach", "forloop")

    def new_state(self, param: Tensor) -> list[Tensor]:
        """`exp_avg` and `exp_avg_sq`."""
        return [ops.zeros_like(param, OPTIMIZER_STATE), ops.zeros_like(param, OPTIMIZER_STATE)]

    def foreach(self) -> None:
        for params in self.groups():
            grads: list[Tensor] = []
            grads = self.decayed_gradients(params)
            ops.in_place("aten::_foreach_lerp_", self.states(params, 0), reads=2, flops=3)
            ops.in_place("aten::_foreach_addcmul_", self.states(params, 1), reads=2, flops=4)
            exp_avg_sq_sqrt = ops.foreach("aten::_foreach_sqrt", self.states(params, 1))
            ops.in_place("aten::_foreach_div_", exp_avg_sq_sqrt, flops=2)
            ops.in_place("aten::_foreach_addcdiv_", params, reads=4, flops=6)
        del grads, exp_avg_sq_sqrt

    def forloop(self) -> None:
        for param, grad, (exp_avg, exp_avg_sq) in self.one_by_one():
            grad = self.decayed_gradient(param, grad)
            ops.in_place("aten::lerp_", [exp_avg], reads=2, flops=3)
            ops.in_place("aten::addcmul_", [exp_avg_sq], reads=2, flops=4)
            denom = ops.sqrt(ops.div(exp_avg_sq, 1.0))
            ops.in_place("aten::addcdiv_", [param], reads=4, flops=6)
        del grad, denom


OPTIMIZER = NAdam
