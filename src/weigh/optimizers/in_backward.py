"""An optimizer for each parameter, stepped in the backward pass.

PyTorch's recipe for it (`register_post_accumulate_grad_hook`), torchtune's `OptimizerInBackward`: as soon as a gradient
has been accumulated its parameter is updated, and the gradient dropped.
"""

from __future__ import annotations

from functools import partial

from weigh.ghost.nn import Parameter
from weigh.ghost.state import by_owner, inside_unit
from weigh.ghost.tensor import Tensor
from weigh.optimizers import Choice, Optimizer, optimizer


class InBackward(Optimizer):
    """All of them."""

    shardable = False
    hooks = True

    def __init__(self, choice: Choice) -> None:
        super().__init__(choice)
        self.choice = choice
        self.single: list[Optimizer] = []

    def own(self, parameters: list[Parameter]) -> None:
        """Make the optimizers and hook them in."""
        super().own(parameters)
        for parameter in parameters:
            single = optimizer(self.choice)
            with inside_unit(parameter.tensor.storage.unit):
                single.elsewhere = self.elsewhere
                single.own([parameter])
            parameter.tensor.on_accumulated = partial(_step, single, parameter.tensor)
            self.single.append(single)

    def prepare(self) -> None:
        for single in self.single:
            single.prepare()

    def step(self) -> None:
        """Nothing is left to do."""


def _step(single: Optimizer, param: Tensor) -> None:
    with inside_unit(param.storage.unit), by_owner(False):
        single.step()
        param.grad = None
