"""LAMB, as `torch_optimizer/lamb.py` (0.3) does it.

Keeps two tensors beside each parameter; the update and the two norms are made for one parameter at a time.
"""

from __future__ import annotations

from weigh.ghost import ops
from weigh.ghost.tensor import Tensor
from weigh.optimizers.base import Optimizer
from weigh.trace.events import OPTIMIZER_STATE


class Lamb(Optimizer):
    """`torch_optimizer.Lamb`."""

    implementations = ("forloop",)
    states_first = False

    def new_state(self, param: Tensor) -> list[Tensor]:
        """`exp_avg` and `exp_avg_sq`; the two norms and their ratio join them at every step."""
        return [ops.zeros_like(param, OPTIMIZER_STATE), ops.zeros_like(param, OPTIMIZER_STATE)]

    def forloop(self) -> None:
        for param, _, (exp_avg, exp_avg_sq, *kept) in self.one_by_one():
            ops.in_place("aten::add_", [exp_avg], reads=2, flops=3)
            ops.in_place("aten::addcmul_", [exp_avg_sq], reads=2, flops=4)
            weight_norm = ops.clamp(ops.vector_norm(param.alias()))
            adam_step = _step(exp_avg, exp_avg_sq)  # lives into the turn of the next parameter
            adam_norm = ops.vector_norm(adam_step)
            for norm in (weight_norm, adam_norm):
                ops.equal_to(norm)
            norms = [weight_norm, adam_norm, ops.div(weight_norm, adam_norm)]
            for norm in norms:
                norm.storage.relabel(OPTIMIZER_STATE, param.storage.path)
            self.state[id(param)] = [exp_avg, exp_avg_sq, *norms]
            del kept, norm, norms, weight_norm, adam_norm
            ops.mul(self.state[id(param)][-1], 1.0)
            ops.in_place("aten::add_", [param], reads=2, flops=2)
        del adam_step


def _step(exp_avg: Tensor, exp_avg_sq: Tensor) -> Tensor:
    root = ops.sqrt(exp_avg_sq)
    denominator = ops.add(root, 1.0)
    del root
    return ops.div(exp_avg, denominator)


OPTIMIZER = Lamb
