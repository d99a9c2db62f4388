"""AnyPrecisionAdamW, as `torchdistx/optimizers/anyprecision_optimizer.py` does it, as transformers' Trainer makes it.

Keeps two averages in fp32 whatever the parameter's dtype, and no compensation.
"""

from __future__ import annotations

from weigh.dtypes import FLOAT32
from weigh.ghost import ops
from weigh.ghost.tensor import Tensor
from weigh.optimizers.base import Optimizer
from weigh.trace.events import OPTIMIZER_STATE


class AnyPrecisionAdamW(Optimizer):
    """`torchdistx.optimizers.AnyPrecisionAdamW`."""

    implementations = ("forloop",)
    states_first = False

    def new_state(self, param: Tensor) -> list[Tensor]:
        """`exp_avg` and `exp_avg_sq`."""
        return [ops.zeros_like(param, OPTIMIZER_STATE, FLOAT32) for _ in range(2)]

    def forloop(self) -> None:
        for param, _, (exp_avg, exp_avg_sq) in self.one_by_one():
            ops.in_place("aten::mul_", [param] if self.weight_decay else [])
            ops.in_place("aten::add_", [exp_avg], reads=2, flops=3)
            ops.in_place("aten::addcmul_", [exp_avg_sq], reads=2, flops=4)
            centered_variance = ops.div(ops.sqrt(exp_avg_sq), 1.0)  # lives into the turn of the next parameter
            ops.in_place("aten::addcdiv_", [param], reads=3, flops=3)
        del centered_variance


OPTIMIZER = AnyPrecisionAdamW
