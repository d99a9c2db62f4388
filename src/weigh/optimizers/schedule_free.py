"""Schedule-free SGD, AdamW and RAdam, as `schedulefree` (1.4.1) does them.

Keep a copy of each parameter (`z`), and but for SGD an average of squares. Gradients are normalized in place; the
foreach implementation allocates a list of denominators, the loop one at a time. RAdam makes none in its first steps.
"""

from __future__ import annotations

from weigh.ghost import ops
from weigh.ghost.state import inside_unit
from weigh.ghost.tensor import Tensor
from weigh.optimizers.base import Choice, Optimizer
from weigh.trace.events import OPTIMIZER_STATE

RECTIFIED_FROM = 5
"""The first step of RAdam whose variance is rectified (`rho_t > 4`), with the default betas."""


class ScheduleFree(Optimizer):
    """`AdamWScheduleFree`, `RAdamScheduleFree` or `SGDScheduleFree`."""

    implementations = ("foreach", "forloop")

    def __init__(self, choice: Choice) -> None:
        super().__init__(choice)
        self.kind = choice.name.rpartition("_")[2]

    def new_state(self, param: Tensor) -> list[Tensor]:
        """`z`, and `exp_avg_sq`."""
        with inside_unit(param.storage.unit):
            z = ops.clone(param)
        z.storage.relabel(OPTIMIZER_STATE, param.storage.path)
        return [z] if self.kind == "sgd" else [z, ops.zeros_like(param, OPTIMIZER_STATE)]

    @property
    def normalizes(self) -> bool:
        """The step divides its gradients."""
        return self.kind == "adamw" or (self.kind == "radam" and self.steps >= RECTIFIED_FROM)

    def foreach(self) -> None:
        params = self.with_gradients()
        if self.kind != "sgd":
            ops.in_place("aten::_foreach_addcmul_", self.states(params, 1), reads=2, flops=4)
        denom: list[Tensor] = []
        if self.normalizes:
            denom = ops.foreach("aten::_foreach_div", self.states(params, 1))
            ops.in_place("aten::_foreach_div_", denom, flops=3)
        ops.in_place("aten::_foreach_lerp_", params, reads=3, flops=6)
        ops.in_place("aten::_foreach_sub_", self.states(params, 0), reads=2, flops=2)
        del denom

    def forloop(self) -> None:
        denom = None
        for param, _, (z, *averages) in self.one_by_one():
            ops.in_place("aten::addcmul_", averages, reads=2, flops=4)
            if self.normalizes:
                denom = ops.div(averages[0], 1.0)  # lives into the turn of the next parameter
                ops.in_place("aten::div_", [denom], flops=3)
            ops.in_place("aten::lerp_", [param], reads=3, flops=6)
            ops.in_place("aten::sub_", [z], reads=2, flops=2)
        del denom


OPTIMIZER = ScheduleFree
