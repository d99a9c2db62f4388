"""RMSprop, as `torch/optim/rmsprop.py` (2.13) does it: not centered.

Keeps one tensor beside each parameter, two with momentum. The foreach implementation allocates a list of roots, the
loop a root at a time.
"""

from __future__ import annotations

from weigh.ghost import ops
from weigh.ghost.tensor import Tensor
from weigh.optimizers.base import Optimizer
from weigh.trace.events import OPTIMIZER_STATE


class RMSprop(Optimizer):
    """`torch.optim.RMSprop`."""

    implementations = ("foreach", "forloop")
    takes_momentum = True

    def new_state(self, param: Tensor) -> list[Tensor]:
        """The average of squares, and the momentum."""
        return [ops.zeros_like(param, OPTIMIZER_STATE) for _ in range(2 if self.momentum else 1)]

    def foreach(self) -> None:
        for params in self.groups():
            grads: list[Tensor] = []
            grads = self.decayed_gradients(params)
            ops.in_place("aten::_foreach_mul_", self.states(params, 0))
            ops.in_place("aten::_foreach_addcmul_", self.states(params, 0), reads=2, flops=3)
            avg = ops.foreach("aten::_foreach_sqrt", self.states(params, 0))
            ops.in_place("aten::_foreach_add_", avg)
            if self.momentum:
                ops.in_place("aten::_foreach_addcdiv_", self.states(params, 1), reads=3, flops=3)
            ops.in_place("aten::_foreach_addcdiv_", params, reads=3, flops=3)
        del grads, avg

    def forloop(self) -> None:
        for param, grad, (square_avg, *momentum) in self.one_by_one():
            grad = self.decayed_gradient(param, grad)
            ops.in_place("aten::addcmul_", [square_avg], reads=2, flops=4)
            avg = ops.sqrt(square_avg)
            ops.in_place("aten::addcdiv_", [*momentum, param], reads=3, flops=3)
        del grad, avg


OPTIMIZER = RMSprop
