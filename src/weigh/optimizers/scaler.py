"""Loss scaling for fp16, as `torch/amp/grad_scaler.py` (2.13) does it.

Keeps two numbers on the device, the scale and a count of steps. Gradients are unscaled in place; what else is made are
single numbers.
"""

from __future__ import annotations

from weigh.dtypes import FLOAT32, FLOAT64, INT32
from weigh.ghost import ops
from weigh.ghost.state import no_grad
from weigh.ghost.tensor import Tensor
from weigh.optimizers.base import Optimizer
from weigh.trace.events import OPTIMIZER_STATE


class GradScaler:
    """`torch.amp.GradScaler`."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []
        self.found_inf: Tensor | None = None

    def scale(self, loss: Tensor) -> Tensor:
        """The scaled loss; its numbers are made when the first is."""
        if not self.kept:
            self.kept = [ops.full((), FLOAT32), ops.full((), INT32)]
            for number in self.kept:
                number.storage.relabel(OPTIMIZER_STATE, "")
        return ops.mul(loss, self.kept[0])

    def unscale(self, optimizer: Optimizer) -> None:
        """Unscale the gradients once a step, and look for infinities."""
        if self.found_inf is not None:
            return
        with no_grad():
            number = ops.to(self.kept[0], FLOAT64)
            number = ops.reciprocal(number)
            number = ops.to(number, FLOAT32)
            found_inf = ops.full((), FLOAT32)
            self.found_inf = ops.clone(found_inf)  # `_MultiDeviceReplicator.get` copies both to where they are
            inverse = ops.clone(number)
            gradients = [g for p in optimizer.with_gradients() if (g := p.grad) is not None]
            ops.in_place("aten::_amp_foreach_non_finite_check_and_unscale_", gradients)
            del inverse, number, found_inf

    def update(self) -> None:
        """The next scale, in place; what was found is forgotten."""
        self.found_inf = None
