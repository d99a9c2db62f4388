"""Prodigy, as `prodigyopt/prodigy.py` (1.1.2) does it.

Keeps four tensors beside each parameter: a sum, the parameter as it was at first, and Adam's averages. Two passes over
the parameters make a few tensors of one parameter's size each.
"""

from __future__ import annotations

from weigh.ghost import ops
from weigh.ghost.state import inside_unit
from weigh.ghost.tensor import Tensor, empty
from weigh.optimizers.base import Optimizer
from weigh.trace.events import OPTIMIZER_STATE


class Prodigy(Optimizer):
    """`prodigyopt.Prodigy`."""

    implementations = ("forloop",)
    states_first = False

    def new_state(self, param: Tensor) -> list[Tensor]:
        """`s`, `p0`, `exp_avg` and `exp_avg_sq`."""
        kept = [ops.zeros_like(param, OPTIMIZER_STATE)]
        with inside_unit(param.storage.unit):
            ops.any_(param)
            p0 = ops.clone(param)
        p0.storage.relabel(OPTIMIZER_STATE, param.storage.path)
        return [*kept, p0, ops.zeros_like(param, OPTIMIZER_STATE), ops.zeros_like(param, OPTIMIZER_STATE)]

    def forloop(self) -> None:
        for param, _, (s, p0, exp_avg, exp_avg_sq) in self.one_by_one():
            difference = ops.sub(p0, param)
            empty((), param.dtype, "aten::dot")
            del difference
            ops.in_place("aten::add_", [exp_avg], reads=2, flops=3)
            ops.in_place("aten::addcmul_", [exp_avg_sq], reads=2, flops=4)
            ops.in_place("aten::add_", [s], reads=2, flops=3)
            magnitude = ops.absolute(s)
            empty((), s.dtype, "aten::sum")
            del magnitude
        for param, _, (_, _, _, exp_avg_sq) in self.one_by_one():
            denom = ops.sqrt(exp_avg_sq)  # lives into the turn of the next parameter
            ops.in_place("aten::addcdiv_", [param], reads=3, flops=3)
        del denom


OPTIMIZER = Prodigy
