"""Adamax, as `torch/optim/adamax.py` (2.13) does it.

Keeps two tensors beside each parameter. The foreach implementation allocates a list of the gradients' magnitudes, the
loop a magnitude at a time.
"""

from __future__ import annotations

from weigh.ghost import ops
from weigh.ghost.tensor import Tensor
from weigh.optimizers.base import Optimizer
from weigh.trace.events import OPTIMIZER_STATE


class Adamax(Optimizer):
    """`torch.optim.Adamax`."""

    implementations = ("foreach", "forloop")

    def new_state(self, param: Tensor) -> list[Tensor]:
        """The average, and the greatest magnitude."""
        return [ops.zeros_like(param, OPTIMIZER_STATE), ops.zeros_like(param, OPTIMIZER_STATE)]

    def foreach(self) -> None:
        for params in self.groups():
            grads: list[Tensor] = []
            grads = self.decayed_gradients(params)
            ops.in_place("aten::_foreach_lerp_", self.states(params, 0), reads=2, flops=3)
            grads = grads or ops.foreach("aten::_foreach_abs", params)
            ops.in_place("aten::_foreach_maximum_", self.states(params, 1), reads=2, flops=3)
            ops.in_place("aten::_foreach_addcdiv_", params, reads=3, flops=3)
        del grads

    def forloop(self) -> None:
        for param, grad, (exp_avg, exp_inf) in self.one_by_one():
            grad = self.decayed_gradient(param, grad)
            ops.in_place("aten::lerp_", [exp_avg], reads=2, flops=3)
            magnitude = ops.absolute(grad)
            ops.in_place("aten::maximum", [exp_inf], reads=2, flops=3)
            del magnitude
            ops.in_place("aten::addcdiv_", [param], reads=3, flops=3)
        del grad


OPTIMIZER = Adamax
