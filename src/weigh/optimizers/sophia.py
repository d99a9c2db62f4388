"""SophiaG, as `sophia.py` of Liuhong99/Sophia does it, in a step that does not renew the Hessian's diagonal.

Keeps two tensors beside each parameter; magnitudes and a clipped ratio are made for one parameter at a time. The
diagonal is renewed in place by a forward and backward pass of its own, which is not run here.
"""

from __future__ import annotations

from weigh.ghost import ops
from weigh.ghost.tensor import Tensor
from weigh.optimizers.base import Optimizer
from weigh.trace.events import OPTIMIZER_STATE


class Sophia(Optimizer):
    """`SophiaG`."""

    implementations = ("forloop",)
    default_decay = 0.1

    def new_state(self, param: Tensor) -> list[Tensor]:
        """`exp_avg` and the diagonal of the Hessian."""
        return [ops.zeros_like(param, OPTIMIZER_STATE), ops.zeros_like(param, OPTIMIZER_STATE)]

    def forloop(self) -> None:
        for param, _, (exp_avg, hess) in self.one_by_one():
            ops.in_place("aten::mul_", [param])
            ops.in_place("aten::add_", [exp_avg], reads=2, flops=3)
            ratio = self._ratio(exp_avg, hess)  # lives into the turn of the next parameter
            sign = ops.like("aten::sign", exp_avg)
            ops.in_place("aten::addcmul_", [param], reads=3, flops=3)
            del sign
        del ratio

    def _ratio(self, exp_avg: Tensor, hess: Tensor) -> Tensor:
        magnitude = ops.absolute(exp_avg)
        bound = ops.mul(hess, 1.0)
        bound = ops.add(bound, 1.0)
        quotient = ops.div(magnitude, bound)
        del magnitude, bound
        return ops.clamp(quotient)


OPTIMIZER = Sophia
