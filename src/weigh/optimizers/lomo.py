"""LOMO and AdaLomo, as `lomo_optim` (0.1.1) does them: the update runs in the backward pass.

As soon as a gradient comes, those before it are turned to fp32, applied and dropped; the last one after the backward
pass. LOMO keeps nothing. AdaLomo keeps, from the start, an average in fp32 for each row and column of a matrix, and one
of a vector's own size. Clipping by the norm, which runs the backward pass twice, is not done.
"""

from __future__ import annotations

from functools import partial

from weigh.dtypes import FLOAT32
from weigh.errors import UsageError
from weigh.ghost import ops
from weigh.ghost.autograd import queue_callback
from weigh.ghost.nn import Parameter
from weigh.ghost.state import by_owner, no_grad
from weigh.ghost.tensor import Tensor
from weigh.optimizers.adafactor import approximate, clip_divisor, root_mean_square
from weigh.optimizers.base import Choice, Optimizer
from weigh.trace.events import OPTIMIZER_STATE


class Lomo(Optimizer):
    """`lomo_optim.Lomo`."""

    implementations = ("forloop",)
    shardable = False
    hooks = True
    clips = True  # what the loop clips is gone by then

    def __init__(self, choice: Choice) -> None:
        super().__init__(choice)
        self.pending: list[Tensor] = []
        self.queued = False

    def own(self, parameters: list[Parameter]) -> None:
        """Hook the update in."""
        super().own(parameters)
        for parameter in parameters:
            parameter.tensor.on_gradient = partial(self._on_gradient, parameter.tensor)

    def _on_gradient(self, param: Tensor) -> None:
        """`fuse_update`, when the next gradient has come and is not yet in its place."""
        if not self.queued:
            self.queued = True
            queue_callback(self._after_backward)
        self._update_pending()
        self.pending.append(param)

    def _after_backward(self) -> None:
        self.queued = False
        self._update_pending()

    def _update_pending(self) -> None:
        for param in self.pending:
            with by_owner(False), no_grad():
                grad = param.grad
                if grad is None:
                    raise UsageError("LOMO sees each gradient once", where="accumulation", hint="Leave it out.")
                grad = ops.to(grad, FLOAT32)
                param.grad = None
                self.apply(param, grad)
                del grad
        self.pending.clear()

    def apply(self, param: Tensor, grad: Tensor) -> None:
        """The update of one parameter, in fp32."""
        wide = ops.to(param, FLOAT32)
        ops.in_place("aten::add_", [wide], reads=2, flops=2)
        ops.in_place("aten::copy_", [param])

    def prepare(self) -> None:
        """What there is to keep is there from the start."""

    def step(self) -> None:
        """Nothing is left to do."""


class AdaLomo(Lomo):
    """`lomo_optim.AdaLomo`."""

    def own(self, parameters: list[Parameter]) -> None:
        """Make the averages and hook the update in."""
        super().own(parameters)
        for parameter in parameters:
            param = parameter.tensor
            shapes = [param.shape] if param.ndim == 1 else [param.shape[:1], param.shape[1:2]]
            self.state[id(param)] = [ops.kept_beside(param, s, FLOAT32, OPTIMIZER_STATE) for s in shapes]

    def apply(self, param: Tensor, grad: Tensor) -> None:
        """Adafactor's update."""
        averages = self.state[id(param)]
        update = ops.add(ops.pow(grad, 2), 1e-30)
        if len(averages) == 2:
            for average, dim in zip(averages, (-1, -2), strict=True):
                ops.mean(update, dim)
                ops.in_place("aten::add_", [average], reads=2, flops=3)
            update = approximate(*averages)
        else:
            ops.in_place("aten::add_", averages, reads=2, flops=3)
            update = ops.rsqrt(averages[0])
        ops.in_place("aten::mul_", [update], reads=2)
        clip_divisor(update)
        ops.in_place("aten::div_", [update], flops=2)
        wide = ops.to(param, FLOAT32)
        rate = ops.greater_than(root_mean_square(wide))
        ops.in_place("aten::add_", [wide], reads=2, flops=2)
        ops.in_place("aten::copy_", [param])
        del rate
