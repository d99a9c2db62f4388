"""Adan, as `adan.py` of sail-sg/Adan does it.

Keeps four tensors beside each parameter, the last gradient among them. The foreach implementation allocates a list of
denominators, the loop two tensors for a moment.
"""

from __future__ import annotations

from weigh.ghost import ops
from weigh.ghost.state import inside_unit
from weigh.ghost.tensor import Tensor
from weigh.optimizers.base import Optimizer
from weigh.trace.events import OPTIMIZER_STATE


class Adan(Optimizer):
    """`adan.Adan`."""

    implementations = ("foreach", "forloop")

    def new_state(self, param: Tensor) -> list[Tensor]:
        """`exp_avg`, `exp_avg_sq`, `exp_avg_diff` and `neg_pre_grad`."""
        kept = [ops.zeros_like(param, OPTIMIZER_STATE) for _ in range(3)]
        with inside_unit(param.storage.unit):
            neg_pre_grad = ops.like("aten::clone", param)
        neg_pre_grad.storage.relabel(OPTIMIZER_STATE, param.storage.path)
        return [*kept, neg_pre_grad]

    def foreach(self) -> None:
        params = self.with_gradients()
        for index in (3, 0, 2, 1):
            ops.in_place("aten::_foreach_add_", self.states(params, index), reads=2, flops=4)
        denom = ops.foreach("aten::_foreach_sqrt", self.states(params, 1))
        ops.in_place("aten::_foreach_addcdiv_", params, reads=6, flops=7)
        del denom

    def forloop(self) -> None:
        for param, _, states in self.one_by_one():
            ops.in_place("aten::add_", states, reads=2, flops=4)
            denom = ops.div(ops.sqrt(states[1]), 1.0)  # lives into the turn of the next parameter
            ops.in_place("aten::addcdiv_", [param], reads=6, flops=7)
        del denom


OPTIMIZER = Adan
