"""Muon, as `torch/optim/_muon.py` (2.13) does it: matrices alone, one after the other.

Keeps one tensor beside each parameter. The update is made orthogonal in bf16 by five steps of Newton-Schulz, whose Gram
matrix and its update are squares of the shorter side.
"""

from __future__ import annotations

from weigh.dtypes import BFLOAT16
from weigh.errors import UsageError
from weigh.ghost import ops
from weigh.ghost.nn import Parameter
from weigh.ghost.tensor import Tensor
from weigh.optimizers.base import Optimizer
from weigh.trace.events import OPTIMIZER_STATE

STEPS = 5
"""Of Newton-Schulz (`ns_steps`)."""


class Muon(Optimizer):
    """`torch.optim.Muon`."""

    implementations = ("forloop",)
    shardable = False
    default_decay = 0.1

    def own(self, parameters: list[Parameter]) -> None:
        """Take charge of these matrices.

        Raises:
            UsageError: one is no matrix; PyTorch refuses it too.
        """
        odd = next((p for p in parameters if p.tensor.ndim != 2), None)
        if odd is not None:
            raise UsageError(
                f"Muon takes matrices alone, and {odd.names[0]} has {odd.tensor.ndim} dimensions",
                where="optimizer",
                hint="Train the matrices alone, for instance with --lora.",
            )
        super().own(parameters)

    def new_state(self, param: Tensor) -> list[Tensor]:
        """The momentum."""
        return [ops.zeros_like(param, OPTIMIZER_STATE)]

    def forloop(self) -> None:
        for param, grad, (buffer,) in self.one_by_one():
            ops.in_place("aten::lerp_", [buffer], reads=2, flops=3)
            update = ops.like("aten::lerp", grad)  # lives into the turn of the next parameter
            update = _orthogonal(update)
            ops.in_place("aten::add_", [param], reads=2, flops=3)
        del update


def _orthogonal(update: Tensor) -> Tensor:
    """`_zeropower_via_newtonschulz`."""
    found = ops.to(update, BFLOAT16)
    if update.shape[0] > update.shape[1]:
        found = found.t()
    norm = ops.vector_norm(found)
    clamped = ops.clamp(norm)
    del norm
    ops.in_place("aten::div_", [found])
    del clamped
    for _ in range(STEPS):
        gram_matrix = ops.mm(found, found.t())
        gram_update = ops.addmm(gram_matrix, gram_matrix, gram_matrix)
        found = ops.addmm(found, gram_update, found)
    return found


OPTIMIZER = Muon
