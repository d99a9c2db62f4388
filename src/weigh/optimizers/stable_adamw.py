"""StableAdamW, as `optimi/stableadamw.py` (0.3.3) does it with its Triton kernels, the default where Triton is.

Keeps two averages of the parameter's dtype and three small numbers; of parameters in 16 bits also what rounding lost
(Kahan summation, the default there). The kernels work in place.
"""

from __future__ import annotations

from weigh.dtypes import FLOAT32, UINT8
from weigh.ghost import ops
from weigh.ghost.tensor import Tensor
from weigh.optimizers.base import Optimizer
from weigh.trace.events import OPTIMIZER_STATE


class StableAdamW(Optimizer):
    """`optimi.StableAdamW`."""

    implementations = ("fused",)
    default_decay = 0.01

    def new_state(self, param: Tensor) -> list[Tensor]:
        """`exp_avg`, `exp_avg_sq`, `eps_sq`, `kahan_comp` and `mean_square`."""
        kept = [ops.zeros_like(param, OPTIMIZER_STATE) for _ in range(2)]
        kept.append(ops.kept_beside(param, (), param.dtype, OPTIMIZER_STATE, "aten::_to_copy"))
        if param.dtype.itemsize == 2:
            kept.append(ops.zeros_like(param, OPTIMIZER_STATE))
        else:
            kept.append(ops.kept_beside(param, (1,), UINT8, OPTIMIZER_STATE))
        kept.append(ops.kept_beside(param, (1,), FLOAT32, OPTIMIZER_STATE))
        return kept

    def fused(self) -> None:
        ops.in_place("optimi::stableadamw", self.with_gradients(), reads=4, flops=14)


OPTIMIZER = StableAdamW
