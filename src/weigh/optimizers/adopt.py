"""ADOPT, as `adopt.py` of iShohei220/adopt does it.

Keeps two tensors beside each parameter. Its first step only begins the squares; from the second on roots and their
clamped copies are made, for all parameters at once or one by one.
"""

from __future__ import annotations

from weigh.ghost import ops
from weigh.ghost.tensor import Tensor
from weigh.optimizers.base import Optimizer
from weigh.trace.events import OPTIMIZER_STATE


class Adopt(Optimizer):
    """`adopt.ADOPT`."""

    implementations = ("foreach", "forloop")

    def new_state(self, param: Tensor) -> list[Tensor]:
        """`exp_avg` and `exp_avg_sq`."""
        return [ops.zeros_like(param, OPTIMIZER_STATE) for _ in range(2)]

    def foreach(self) -> None:
        roots: list[Tensor] = []
        grads: list[Tensor] = []
        for params in self.groups():
            squares = self.states(params, 1)
            grads = []
            grads = self.decayed_gradients(params)
            if self.steps > 1:
                for _ in range(1 if self.steps == 2 else 2):  # upstream makes them twice
                    roots = ops.foreach("aten::_foreach_sqrt", squares)
                    roots = ops.foreach("aten::_foreach_maximum", roots)
                ops.in_place("aten::_foreach_addcdiv_", self.states(params, 0), reads=3, flops=4)
                ops.in_place("aten::_foreach_add_", params, reads=2, flops=2)
            ops.in_place("aten::_foreach_addcmul_", squares, reads=2, flops=4)
        del roots, grads

    def forloop(self) -> None:
        denom = None
        for param, grad, (exp_avg, exp_avg_sq) in self.one_by_one():
            grad = self.decayed_gradient(param, grad)
            if self.steps > 1:
                for _ in range(1 if self.steps == 2 else 2):
                    denom = ops.clamp(ops.sqrt(exp_avg_sq))
                ops.in_place("aten::addcdiv_", [exp_avg], reads=3, flops=4)
                ops.in_place("aten::add_", [param], reads=2, flops=2)
            ops.in_place("aten::addcmul_", [exp_avg_sq], reads=2, flops=4)
        del grad, denom


OPTIMIZER = Adopt
