"""RAdam, as `torch/optim/radam.py` (2.13) does it: weight decay is not decoupled.

Keeps two tensors beside each parameter. The foreach implementation allocates one list of the parameters' size; the loop
one tensor at a time, and more from the sixth step on, when the variance is rectified.
"""

from __future__ import annotations

from weigh.ghost import ops
from weigh.ghost.tensor import Tensor
from weigh.optimizers.base import Optimizer
from weigh.trace.events import OPTIMIZER_STATE

RECTIFIED_FROM = 6
"""The first step whose variance is rectified (`rho_t > 5`), with the default betas."""


class RAdam(Optimizer):
    """`torch.optim.RAdam`."""

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
            del grads
            buffer = ops.foreach("aten::_foreach_sqrt", self.states(params, 1))
            ops.in_place("aten::_foreach_add_", buffer, flops=4)
            ops.in_place("aten::_foreach_addcmul_", params, reads=3, flops=3)
        del buffer

    def forloop(self) -> None:
        for param, grad, (exp_avg, exp_avg_sq) in self.one_by_one():
            grad = self.decayed_gradient(param, grad)
            ops.in_place("aten::lerp_", [exp_avg], reads=2, flops=3)
            ops.in_place("aten::addcmul_", [exp_avg_sq], reads=2, flops=4)
            bias_corrected_exp_avg = ops.div(exp_avg, 1.0)
            update = ops.mul(bias_corrected_exp_avg, 1.0)
            if self.steps >= RECTIFIED_FROM:
                update = ops.mul(update, _adaptive_rate(exp_avg_sq))
                update = ops.mul(update, 1.0)
            ops.in_place("aten::add_", [param], reads=2, flops=2)
            del update
        del grad, bias_corrected_exp_avg


def _adaptive_rate(exp_avg_sq: Tensor) -> Tensor:
    root = ops.sqrt(exp_avg_sq)
    return ops.mul(ops.reciprocal(root), 1.0)


OPTIMIZER = RAdam
