"""apex's FusedAdam (as AdamW), as `apex/optimizers/fused_adam.py` does it.

Keeps two fp32 tensors beside each parameter, whatever its dtype; `multi_tensor_adam` works in place and allocates
nothing but a flag for overflows, made with the optimizer.
"""

from __future__ import annotations

from weigh.dtypes import FLOAT32
from weigh.ghost import ops
from weigh.ghost.nn import Parameter
from weigh.ghost.state import inside_unit
from weigh.ghost.tensor import Tensor
from weigh.optimizers.base import Optimizer
from weigh.trace.events import OPTIMIZER_STATE


class FusedAdam(Optimizer):
    """`apex.optimizers.FusedAdam`."""

    implementations = ("fused",)

    def own(self, parameters: list[Parameter]) -> None:
        """Take charge of these parameters, and make the flag (`_dummy_overflow_buf`)."""
        super().own(parameters)
        self.flag = ops.zeros((1,), FLOAT32)
        self.flag.storage.relabel(OPTIMIZER_STATE, "")

    def new_state(self, param: Tensor) -> list[Tensor]:
        """`exp_avg` and `exp_avg_sq`, made in the parameter's dtype first (`.float()`)."""
        with inside_unit(param.storage.unit):
            kept = [ops.to(ops.zeros_like(param, OPTIMIZER_STATE), FLOAT32) for _ in range(2)]
        for tensor in kept:
            tensor.storage.relabel(OPTIMIZER_STATE, param.storage.path)
        return kept

    def fused(self) -> None:
        for params in self.groups():
            ops.in_place("apex::multi_tensor_adam", params, reads=4, flops=12)


OPTIMIZER = FusedAdam
