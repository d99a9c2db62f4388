"""Adafactor, as `torch/optim/_adafactor.py` (2.13) does it.

Keeps an average for each row and each column of a matrix, one of its own size beside a vector, in the parameter's
dtype. The foreach implementation allocates a list of estimates of the matrices' size, the loop one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from weigh.ghost import ops
from weigh.ghost.state import inside_unit, state
from weigh.ghost.tensor import Tensor
from weigh.optimizers.base import Optimizer
from weigh.trace.events import OPTIMIZER_STATE


class TorchAdafactor(Optimizer):
    """`torch.optim.Adafactor`."""

    implementations = ("foreach", "forloop")

    def new_state(self, param: Tensor) -> list[Tensor]:
        """The averages of rows and columns, or of every element."""
        if param.ndim < 2:
            return [ops.zeros_like(param, OPTIMIZER_STATE)]
        shapes = (*param.shape[:-1], 1), (*param.shape[:-2], 1, param.shape[-1])
        return [ops.kept_beside(param, shape, param.dtype, OPTIMIZER_STATE, "aten::new_zeros") for shape in shapes]

    def groups(self) -> Iterator[list[Tensor]]:
        """By dtype, matrices and vectors apart (`_group_tensors_by_device_dtype_and_is_multidim`)."""
        for params in super().groups():
            for many in (True, False):
                chosen = [p for p in params if (p.ndim > 1) is many]
                if chosen:
                    yield chosen

    def foreach(self) -> None:
        for params in self.groups():
            _norms(params)
            if params[0].ndim > 1:
                for number in (0, 1):
                    means = _each(params, lambda p, n=number: ops.norm_along(p, -1 - n))  # type: ignore[misc]
                    ops.in_place("aten::_foreach_lerp_", self.states(params, number), reads=2, flops=3)
                    del means
                estimates = _each(params, lambda p: ops.matmul(*self.state_of(p)))
                row_means = _each(params, lambda p: ops.mean(self.state_of(p)[0], -2, keepdim=True))
                ops.in_place("aten::_foreach_div_", estimates)
                del row_means
            else:
                squared = ops.foreach("aten::_foreach_mul", params)
                ops.in_place("aten::_foreach_lerp_", self.states(params, 0), reads=2, flops=3)
                del squared
                estimates = _each(params, lambda p: ops.clone(self.state_of(p)[0]))
            ops.in_place("aten::_foreach_mul_", estimates, reads=2, flops=3)
            updates = estimates  # alive until the next group's are there, and the name of its estimates is taken
            _norms(updates)
            ops.in_place("aten::_foreach_add_", params, reads=2, flops=2)
        del estimates, updates

    def forloop(self) -> None:
        row_mean = col_mean = grad_squared = estimate = update = None
        for param, grad, averages in self.one_by_one():
            ops.vector_norm(param)
            if param.ndim > 1:
                row_mean = ops.norm_along(grad, -1)  # what has a name here lives into the next parameter's turn
                col_mean = ops.norm_along(grad, -2)
                ops.in_place("aten::lerp_", averages, reads=2, flops=3)
                estimate = ops.matmul(*averages)
                ops.mean(averages[0], -2, keepdim=True)
            else:
                grad_squared = ops.mul(grad, grad)
                ops.in_place("aten::lerp_", averages, reads=2, flops=3)
                estimate = ops.clone(averages[0])
            update = estimate
            ops.in_place("aten::mul_", [update], reads=2, flops=2)
            ops.vector_norm(update)
            ops.in_place("aten::add_", [param], reads=2, flops=2)
        del row_mean, col_mean, grad_squared, estimate, update


def _each(params: list[Tensor], make: Callable[[Tensor], Tensor]) -> list[Tensor]:
    made = []
    for param in params:
        with inside_unit(param.storage.unit):
            made.append(make(param))
    state.ledger.cut()
    return made


def _norms(tensors: list[Tensor]) -> None:
    """`tensor.norm(2).item()` of each."""
    for tensor in tensors:
        with inside_unit(tensor.storage.unit):
            ops.vector_norm(tensor)
    state.ledger.cut()


OPTIMIZER = TorchAdafactor
