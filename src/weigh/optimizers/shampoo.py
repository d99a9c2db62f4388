"""Shampoo, as `pytorch_optimizer/optimizer/shampoo.py` (4.1.0) does it.

Keeps two squares for each dimension of a parameter, whatever its size, and the last update. The inverse roots are
found anew in every step by singular value decompositions, whose workspaces inside the solver are not counted.
"""

from __future__ import annotations

from weigh.dtypes import FLOAT32
from weigh.ghost import ops
from weigh.ghost.tensor import Tensor, empty
from weigh.optimizers.base import Choice, Optimizer
from weigh.trace.events import OPTIMIZER_STATE


class Shampoo(Optimizer):
    """`pytorch_optimizer.Shampoo`."""

    implementations = ("forloop",)
    shardable = False

    def __init__(self, choice: Choice) -> None:
        super().__init__(choice)
        self.updates: dict[int, Tensor] = {}
        """`state["momentum_buffer"]`, kept without momentum too."""

    def new_state(self, param: Tensor) -> list[Tensor]:
        """`pre_cond_0`, `inv_pre_cond_0` and so on."""
        kept = []
        for size in param.shape:
            made = empty((size, size), FLOAT32, "aten::eye", unit=param.storage.unit)
            kept.append(ops.to(made, param.dtype))
            kept.append(ops.kept_beside(param, (size, size), param.dtype, OPTIMIZER_STATE, "aten::empty"))
            kept[-2].storage.relabel(OPTIMIZER_STATE, param.storage.path)
            del made
        return kept

    def forloop(self) -> None:
        for param, grad, states in self.one_by_one():
            statistics_grad, shape = grad, param.shape
            for dim, _ in enumerate(shape):
                pre_cond, inv_pre_cond = states[2 * dim : 2 * dim + 2]
                ops.in_place("aten::addmm_", [pre_cond], reads=2, flops=2)
                if dim == 1:
                    grad = ops.contiguous(grad.t())
                rows = grad.view(shape[dim], -1) if grad.ndim == 1 else grad
                _inverse_root(pre_cond)
                ops.in_place("aten::copy_", [inv_pre_cond])
                if dim == param.ndim - 1:
                    grad = ops.matmul(rows.t(), inv_pre_cond).view(*shape)
                else:
                    grad = ops.matmul(inv_pre_cond, rows)
            grad.storage.relabel(OPTIMIZER_STATE, param.storage.path)
            self.updates[id(param)] = grad
            ops.in_place("aten::add_", [param], reads=2, flops=2)
        del statistics_grad


def _inverse_root(matrix: Tensor) -> Tensor:
    """`compute_power_svd`."""
    wide = ops.to(matrix, FLOAT32)
    size = wide.shape[0]
    left = empty((size, size), FLOAT32, "aten::_linalg_svd")
    values = empty((size,), FLOAT32, "aten::_linalg_svd")
    right = empty((size, size), FLOAT32, "aten::_linalg_svd")
    del wide
    return ops.to(ops.matmul(ops.mul(left, values), right), matrix.dtype)


OPTIMIZER = Shampoo
