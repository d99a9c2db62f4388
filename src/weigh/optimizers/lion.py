"""Lion, as `lion_pytorch/lion_pytorch.py` (0.2.5) does it.

Keeps one tensor beside each parameter; an update and its scaled average are made for one parameter at a time.
"""

from __future__ import annotations

from weigh.ghost import ops
from weigh.ghost.tensor import Tensor
from weigh.optimizers.base import Optimizer
from weigh.trace.events import OPTIMIZER_STATE


class Lion(Optimizer):
    """`lion_pytorch.Lion`."""

    implementations = ("forloop",)
    states_first = False

    def new_state(self, param: Tensor) -> list[Tensor]:
        """`exp_avg`."""
        return [ops.zeros_like(param, OPTIMIZER_STATE)]

    def forloop(self) -> None:
        for param, _, (exp_avg,) in self.one_by_one():
            ops.in_place("aten::mul_", [param])
            update = ops.add(ops.clone(exp_avg), 1.0)
            ops.in_place("aten::add_", [param], reads=2, flops=2)
            ops.in_place("aten::add_", [exp_avg], reads=2, flops=3)
            del update


OPTIMIZER = Lion
