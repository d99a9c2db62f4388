"""SGD, as `torch/optim/sgd.py` (2.13) does it.

Keeps one tensor beside each parameter where there is momentum: a copy of the first gradient. Weight decay adds itself
into a copy of the gradients (foreach) or of one gradient at a time.
"""

from __future__ import annotations

from weigh.ghost import ops
from weigh.ghost.state import inside_unit
from weigh.ghost.tensor import Tensor
from weigh.optimizers.base import Optimizer
from weigh.trace.events import OPTIMIZER_STATE


class SGD(Optimizer):
    """`torch.optim.SGD`."""

    takes_momentum = True
    states_first = False

    def new_state(self, param: Tensor) -> list[Tensor]:
        """The momentum buffer: a copy of the first gradient, in its layout."""
        if not self.momentum:
            return []
        with inside_unit(param.storage.unit):
            buffer = ops.clone((param.grad if param.grad is not None else param).alias())
        buffer.storage.relabel(OPTIMIZER_STATE, param.storage.path)
        return [buffer]

    def fused(self) -> None:
        for params in self.groups():
            for param in params:
                self.state_of(param)
            ops.in_place("aten::_fused_sgd_", params, reads=2, flops=4)

    def foreach(self) -> None:
        for params in self.groups():
            grads: list[Tensor] = []
            grads = self.decayed_gradients(params)
            for param in params:
                self.state_of(param)
            if self.momentum:
                ops.in_place("aten::_foreach_add_", self.states(params, 0), reads=2, flops=2)
            ops.in_place("aten::_foreach_add_", params, reads=2, flops=2)
        del grads

    def forloop(self) -> None:
        for param, grad in self.gradients_one_by_one():
            grad = self.decayed_gradient(param, grad)
            buffer = self.state_of(param)
            ops.in_place("aten::add_", [*buffer, param], reads=2, flops=2)
        del grad


OPTIMIZER = SGD
