"""Adagrad, as `torch/optim/adagrad.py` (2.13) does it.

Keeps one tensor beside each parameter. The foreach implementation allocates
a list of roots and one of scaled gradients; the loop a root at a time.
"""

from __future__ import annotations

from weigh.ghost import ops
from weigh.ghost.nn import Parameter
from weigh.ghost.tensor import Tensor
from weigh.optimizers.base import Optimizer
from weigh.trace.events import OPTIMIZER_STATE


class Adagrad(Optimizer):
    """`torch.optim.Adagrad`."""

    implementations = ("foreach", "forloop")

    def own(self, parameters: list[Parameter]) -> None:
        """Take charge of these parameters: their states are made at once, before the first step."""
        super().own(parameters)
        for parameter in parameters:
            self.state_of(parameter.tensor)

    def new_state(self, param: Tensor) -> list[Tensor]:
        """The sum of squares."""
        return [ops.zeros_like(param, OPTIMIZER_STATE)]

    def foreach(self) -> None:
        for params in self.groups():
            grads: list[Tensor] = []
            grads = self.decayed_gradients(params)
            ops.in_place("aten::_foreach_addcmul_", self.states(params, 0), reads=2, flops=3)
            std = ops.foreach("aten::_foreach_sqrt", self.states(params, 0))
            ops.in_place("aten::_foreach_add_", std)
            numerator = grads or ops.foreach("aten::_foreach_mul", params)
            ops.in_place("aten::_foreach_addcdiv_", params, reads=3, flops=3)
        del grads, std, numerator

    def forloop(self) -> None:
        for param, grad, (state_sum,) in self.one_by_one():
            grad = self.decayed_gradient(param, grad)
            ops.in_place("aten::addcmul_", [state_sum], reads=2, flops=3)
            std = ops.sqrt(state_sum)
            ops.in_place("aten::addcdiv_", [param], reads=3, flops=3)
        del grad, std


OPTIMIZER = Adagrad
