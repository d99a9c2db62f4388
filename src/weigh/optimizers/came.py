"""CAME, as `came_pytorch/CAME.py` (0.1.3) does it.

Keeps an average of the update in fp32, and of a matrix two averages for each row and each column; of other parameters
one of their own size. Gradients in 16 bits are copied to fp32 for their turn.
"""

from __future__ import annotations

from weigh.dtypes import FLOAT32
from weigh.ghost import ops
from weigh.ghost.tensor import Tensor
from weigh.optimizers.adafactor import approximate, clip_divisor, root_mean_square
from weigh.optimizers.base import Choice, Optimizer
from weigh.trace.events import OPTIMIZER_STATE


class Came(Optimizer):
    """`came_pytorch.CAME`."""

    implementations = ("forloop",)
    states_first = False

    def __init__(self, choice: Choice) -> None:
        super().__init__(choice)
        self.roots: dict[int, Tensor] = {}
        """The root mean square of each parameter, a number on the device (`state["RMS"]`)."""

    def new_state(self, param: Tensor) -> list[Tensor]:
        """`exp_avg`, then rows and columns of the squares and of the residuals, or `exp_avg_sq`."""
        average = ops.zeros_like(param, OPTIMIZER_STATE, FLOAT32)
        if param.ndim < 2:
            return [average, ops.zeros_like(param, OPTIMIZER_STATE, FLOAT32)]
        shapes = 2 * (param.shape[:-1], (*param.shape[:-2], param.shape[-1]))
        return [average, *(ops.kept_beside(param, s, FLOAT32, OPTIMIZER_STATE, "aten::_to_copy") for s in shapes)]

    def forloop(self) -> None:
        for param, grad in self.gradients_one_by_one():
            grad = ops.to(grad, FLOAT32)  # this and all below live into the turn of the next parameter
            exp_avg, *averages = self.state_of(param)
            self.roots[id(param)] = root_mean_square(param)
            self.roots[id(param)].storage.relabel(OPTIMIZER_STATE, param.storage.path)
            update = ops.add(ops.pow(grad, 2), 1e-30)
            if len(averages) == 4:
                _average(update, averages[:2])
                update = approximate(averages[0], averages[1])
            else:
                ops.in_place("aten::add_", averages, reads=2, flops=3)
                update = ops.rsqrt(averages[0])
            ops.in_place("aten::mul_", [update], reads=2)
            clip_divisor(update)
            ops.in_place("aten::div_", [update], flops=2)
            ops.in_place("aten::add_", [exp_avg], reads=2, flops=3)
            res = _instability(update, exp_avg)
            if len(averages) == 4:
                _average(res, averages[2:])
                res_approx = approximate(averages[2], averages[3])
                ops.in_place("aten::mul_", [res_approx], reads=2)
                update = res_approx
            else:
                update = ops.clone(exp_avg)
            ops.in_place("aten::mul_", [update])
            ops.neg(update)
            ops.in_place("aten::add_", [param], reads=2)


def _average(values: Tensor, averages: list[Tensor]) -> None:
    for average, dim in zip(averages, (-1, -2), strict=True):
        ops.mean(values, dim)
        ops.in_place("aten::add_", [average], reads=2, flops=3)


def _instability(update: Tensor, exp_avg: Tensor) -> Tensor:
    difference = ops.sub(update, exp_avg)
    square = ops.pow(difference, 2)
    del difference
    return ops.add(square, 1e-16)


OPTIMIZER = Came
