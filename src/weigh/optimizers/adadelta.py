"""Adadelta, as `torch/optim/adadelta.py` (2.13) does it.

Keeps two tensors beside each parameter. The foreach implementation allocates two lists of the parameters' size, the
loop two tensors at a time.
"""

from __future__ import annotations

from weigh.ghost import ops
from weigh.ghost.tensor import Tensor
from weigh.optimizers.base import Optimizer
from weigh.trace.events import OPTIMIZER_STATE


class Adadelta(Optimizer):
    """`torch.optim.Adadelta`."""

    implementations = ("foreach", "forloop")

    def new_state(self, param: Tensor) -> list[Tensor]:
        """The averages of squares: of the gradients, and of the updates."""
        return [ops.zeros_like(param, OPTIMIZER_STATE), ops.zeros_like(param, OPTIMIZER_STATE)]

    def foreach(self) -> None:
        for params in self.groups():
            grads: list[Tensor] = []
            grads = self.decayed_gradients(params)
            ops.in_place("aten::_foreach_addcmul_", self.states(params, 0), reads=2, flops=4)
            std = ops.foreach("aten::_foreach_add", self.states(params, 0))
            deltas = ops.foreach("aten::_foreach_add", self.states(params, 1))
            ops.in_place("aten::_foreach_mul_", deltas, reads=3, flops=3)
            ops.in_place("aten::_foreach_addcmul_", self.states(params, 1), reads=2, flops=4)
            ops.in_place("aten::_foreach_add_", params, reads=2, flops=2)
        del grads, std, deltas

    def forloop(self) -> None:
        for param, grad, (square_avg, acc_delta) in self.one_by_one():
            grad = self.decayed_gradient(param, grad)
            ops.in_place("aten::addcmul_", [square_avg], reads=2, flops=4)
            std = ops.add(square_avg, 1.0)
            delta = ops.add(acc_delta, 1.0)
            ops.in_place("aten::addcmul_", [acc_delta], reads=2, flops=7)
            ops.in_place("aten::add_", [param], reads=2, flops=2)
        del grad, std, delta


OPTIMIZER = Adadelta
