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

    def __init__(self, implementation: str, momentum: float, weight_decay: float) -> None:
        super().__init__(implementation)
        self.momentum = momentum
        self.weight_decay = weight_decay

    def new_state(self, param: Tensor) -> list[Tensor]:
        """The momentum buffer: a copy of the first gradient, in its layout."""
        if not self.momentum:
            return []
        with inside_unit(param.storage.unit):
            buffer = ops.clone((param.grad if param.grad is not None else param).alias())
        buffer.storage.relabel(OPTIMIZER_STATE, param.storage.path)
        return [buffer]

    def step(self) -> None:
        """The update of every parameter that has a gradient."""
        for params in self.groups():
            decayed: list[Tensor] = []
            if self.weight_decay and self.implementation == "foreach":
                decayed = ops.foreach("aten::_foreach_add", params)
            for param in params:
                with inside_unit(param.storage.unit):
                    single = (
                        ops.like("aten::add", param) if self.weight_decay and self.implementation == "forloop" else None
                    )
                    if id(param) not in self.state:
                        self.state[id(param)] = self.new_state(param)
                    del single
            if self.momentum:
                ops.in_place("aten::_foreach_add_", [self.state[id(p)][0] for p in params], reads=2, flops=2)
            ops.in_place("aten::_foreach_add_", params, reads=2, flops=2)
            del decayed
