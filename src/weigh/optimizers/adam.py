"""Adam and AdamW, as `torch/optim/adam.py` (2.13) does them.

Keeps two tensors of the parameter's dtype beside each parameter (and, fused, a step counter on the device). The foreach
implementation allocates one more copy of all parameters for the denominators; the loop one or two of the largest;
the fused kernel nothing. Adam with weight decay (not decoupled) also adds the decay into a copy of the gradients.
"""

from __future__ import annotations

from weigh.ghost import ops
from weigh.ghost.state import state
from weigh.ghost.tensor import Tensor
from weigh.optimizers.base import Choice, Optimizer
from weigh.trace.events import OPTIMIZER_STATE


class Adam(Optimizer):
    """`torch.optim.Adam`, or AdamW where `decoupled`."""

    def __init__(self, choice: Choice) -> None:
        self.decoupled = choice.name != "adam"
        super().__init__(choice)
        if self.decoupled and choice.weight_decay is None:
            self.weight_decay = 0.01

    def new_state(self, param: Tensor) -> list[Tensor]:
        """`exp_avg` and `exp_avg_sq`; before them the step counter, where it stands on the device."""
        kept = [ops.scalar_state(param, OPTIMIZER_STATE)] if self._counts_on_device() else []
        kept.append(ops.zeros_like(param, OPTIMIZER_STATE))
        kept.append(ops.zeros_like(param, OPTIMIZER_STATE))
        return kept

    def _counts_on_device(self) -> bool:
        """Step counters stand on the CPU, unless a fused kernel reads them; a run on the CPU sees them there."""
        return self.implementation == "fused" or state.overrides.get("device") == "cpu"

    def fused(self) -> None:
        for params in self.groups():
            ops.in_place("aten::_fused_adamw_", params, reads=4, flops=12)

    def foreach(self) -> None:
        exp_avg_sq_sqrt: list[Tensor] = []
        for params in self.groups():
            if self.weight_decay and self.decoupled:
                ops.in_place("aten::_foreach_mul_", params)
            device_grads: list[Tensor] | None = None
            if self.weight_decay and not self.decoupled:
                device_grads = ops.foreach("aten::_foreach_add", params)
            squares = self.states(params, -1)
            ops.in_place("aten::_foreach_lerp_", squares, reads=2, flops=3)
            ops.in_place("aten::_foreach_mul_", squares)
            ops.in_place("aten::_foreach_addcmul_", squares, reads=2, flops=3)
            del device_grads
            exp_avg_sq_sqrt = ops.foreach("aten::_foreach_sqrt", squares)
            ops.in_place("aten::_foreach_div_", exp_avg_sq_sqrt)
            ops.in_place("aten::_foreach_add_", exp_avg_sq_sqrt)
            ops.in_place("aten::_foreach_addcdiv_", params, reads=3, flops=3)
        del exp_avg_sq_sqrt

    def forloop(self) -> None:
        for param, grad, (*_, exp_avg_sq) in self.one_by_one():
            if self.weight_decay and self.decoupled:
                ops.in_place("aten::mul_", [param])
            else:
                grad = self.decayed_gradient(param, grad)
            ops.in_place("aten::lerp_", [exp_avg_sq], reads=2, flops=3)
            ops.in_place("aten::addcmul_", [exp_avg_sq], reads=2, flops=4)
            denom = ops.div(ops.sqrt(exp_avg_sq), 1.0)  # lives into the turn of the next parameter
            ops.in_place("aten::addcdiv_", [param], reads=3, flops=3)
        del grad, denom


OPTIMIZER = Adam
