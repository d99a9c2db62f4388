"""Adafactor, as `transformers/optimization.py` (5.23) does it: in fp32, one parameter after the other.

Keeps an average for each row and each column of a matrix, one of its own size beside other parameters, always in fp32.
A parameter in 16 bits and its gradient are copied to fp32 for their turn.
"""

from __future__ import annotations

from typing import ClassVar

from weigh.dims import Shape
from weigh.dtypes import FLOAT32
from weigh.ghost import ops
from weigh.ghost.tensor import Tensor
from weigh.optimizers.base import Choice, Optimizer
from weigh.trace.events import OPTIMIZER_STATE


class Adafactor(Optimizer):
    """`transformers.Adafactor` without a first moment."""

    implementations = ("forloop",)
    states_first = False
    relative_step: ClassVar[bool] = True
    """The learning rate follows from the parameters' size; False: it is given."""

    def __init__(self, choice: Choice) -> None:
        super().__init__(choice)
        self.roots: dict[int, Tensor] = {}
        """The root mean square of each parameter, a number on the device (`state["RMS"]`)."""

    def new_state(self, param: Tensor) -> list[Tensor]:
        """The averages."""
        shape = self.kept_shape(param)
        if param.ndim < 2:
            return [ops.zeros_like(param, OPTIMIZER_STATE, FLOAT32)]
        shapes = shape[:-1], (*shape[:-2], shape[-1])
        return [ops.kept_beside(param, shape, FLOAT32, OPTIMIZER_STATE, "aten::_to_copy") for shape in shapes]

    def kept_shape(self, param: Tensor) -> Shape:
        """The shape whose rows and columns are kept."""
        return param.shape

    def seen_gradient(self, param: Tensor, grad: Tensor) -> Tensor:
        """What the averages see of a gradient in fp32."""
        return grad

    def whole_update(self, param: Tensor, update: Tensor) -> Tensor:
        """The update of a whole parameter."""
        return update

    def forloop(self) -> None:
        rate = None
        for param, grad in self.gradients_one_by_one():
            grad = ops.to(grad, FLOAT32)  # this and all below live into the turn of the next parameter
            grad = self.seen_gradient(param, grad)
            averages = self.state_of(param)
            wide = param.alias()
            wide = ops.to(wide, FLOAT32)
            self.roots[id(param)] = root_mean_square(wide)
            self.roots[id(param)].storage.relabel(OPTIMIZER_STATE, param.storage.path)
            if self.relative_step:
                ops.greater_than(self.roots[id(param)])
                rate = ops.mul(self.roots[id(param)], 1.0)
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
            update = self.whole_update(param, update)
            ops.in_place("aten::add_", [wide], reads=2)
            ops.neg(update)
            if wide.dtype is not param.dtype:
                ops.in_place("aten::copy_", [param])
        del grad, wide, update, rate


def root_mean_square(x: Tensor) -> Tensor:
    """`_rms`."""
    return ops.div(ops.vector_norm(x), 1.0)


def clip_divisor(update: Tensor) -> None:
    """What an update is divided by, a number that is dropped again."""
    ops.div(root_mean_square(update), 1.0)


def approximate(row: Tensor, column: Tensor) -> Tensor:
    """`_approx_sq_grad`."""
    row_factor = ops.div(row, ops.mean(row, -1, keepdim=True)).unsqueeze(-1)
    column_factor = ops.rsqrt(column.unsqueeze(-2))
    return ops.mul(row_factor, column_factor)


OPTIMIZER = Adafactor
