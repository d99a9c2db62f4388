"""What TorchInductor makes of a function, as one row: what it keeps and what it writes. Modelled."""

from __future__ import annotations

from typing import Any

from weigh.dtypes import FLOAT32
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.tensor import Tensor, empty


class CompiledCrossEntropy(Op):
    """`F.cross_entropy(logits.float(), labels, reduction="sum")` as TorchInductor compiles it. Modelled.

    The cast and the softmax are fused into reductions over the logits as they are; kept are those and each row's
    maximum and sum, from which the backward kernel writes the gradient in the logits' dtype.
    """

    name = "compiled::cross_entropy"
    source = "torch/_functorch/partitioners.py, min_cut_rematerialization_partition: what is cheap is made again"

    @classmethod
    def forward(cls, ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        rows = (logits.shape[0], 1)
        if ctx:
            ctx.save(logits, labels, empty(rows, FLOAT32, cls.name), empty(rows, FLOAT32, cls.name))
        return empty((), FLOAT32, cls.name)

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> list[Any]:
        logits, *_ = ctx.unpack()
        return [empty(logits.shape, logits.dtype, cls.name), None]


def compiled_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(n, classes) in any dtype, (n,) -> ()."""
    return apply(CompiledCrossEntropy, logits, labels)  # type: ignore[no-any-return]
