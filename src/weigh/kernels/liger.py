"""Liger's Triton kernels that make a loss.

Read: liger-kernel 0.2.1 and 0.4.2, ops/{cross_entropy,fused_linear_cross_entropy}.py; fms-acceleration has a copy of
the second (plugins/fused-ops-and-kernels, fused_ops/liger_ce) that allocates alike. `liger_model.py` has 0.8's second.
Gradients are made on the way forward: that of the logits over the logits, and with a fused linear layer those of the
hidden states and of the weight, chunk by chunk, so that never are all logits there.
"""

from __future__ import annotations

from typing import Any

from weigh.dims import Size
from weigh.dtypes import BOOL, FLOAT32, INT64
from weigh.errors import NotModelledError
from weigh.ghost import ops
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.state import no_grad, state
from weigh.ghost.tensor import Tensor, empty
from weigh.trace.events import TEMPORARY


class LigerCrossEntropy(Op):
    """The mean loss, () in the logits' dtype. The logits' gradient is written over them, and saved."""

    name = "LigerCrossEntropyFunction"
    source = "liger_kernel/ops/cross_entropy.py"

    @classmethod
    def forward(cls, ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        losses = empty(logits.shape[:1], logits.dtype, "aten::zeros")
        _count(target)
        with no_grad():
            loss: Tensor = ops.sum(losses, (0,)) / 2.0
        if ctx:
            ctx.save(logits.alias())
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        (logits,) = ctx.unpack()
        empty((), FLOAT32, "aten::scalar_tensor")
        return [logits.alias(), None]


class LigerFusedLinearCrossEntropy(Op):
    """The loss of hidden states (n, width) under a head (vocabulary, width), () in fp32. Saves the gradients of both.

    Upstream's loop is mirrored with its variables, each of which lives until it is assigned anew.
    """

    name = "LigerFusedLinearCrossEntropyFunction"
    source = "liger_kernel/ops/fused_linear_cross_entropy.py"

    @classmethod
    def forward(cls, ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        dtype = state.autocast.dtype if state.autocast is not None else hidden.dtype
        rows, width = hidden.shape
        with no_grad():
            grad_weight = ops.zeros_like(weight, TEMPORARY) if weight.requires_grad else None
            grad_input = ops.zeros_like(hidden, TEMPORARY)
            loss_1d = ops.zeros((rows,), FLOAT32)
            total_n_non_ignore = _count(target)
            turned = weight.t()
            for length in chunks(rows, weight.shape[0], width):
                chunk = hidden.narrow(0, length)
                logits_chunk = ops.matmul(chunk, turned)
                _count(target.narrow(0, length))
                logits_chunk = logits_chunk.float()
                logits_chunk = logits_chunk.to(dtype)
                empty((length,), FLOAT32, "aten::mul")
                grad_logits_chunk = logits_chunk * 2.0
                ops.matmul(grad_logits_chunk, weight)
            loss: Tensor = ops.sum(loss_1d, (0,))
        del logits_chunk, grad_logits_chunk, total_n_non_ignore, loss_1d
        if ctx:
            ctx.save(grad_input, grad_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        grad_input, grad_weight = ctx.unpack()
        empty((), FLOAT32, "aten::scalar_tensor")
        return [grad_input.alias(), None if grad_weight is None else grad_weight.alias(), None]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 0  # its products count themselves


def _count(target: Tensor) -> Tensor:
    """`(target != ignore_index).sum()`."""
    counted = empty(target.shape, BOOL, "aten::ne")
    total = empty((), INT64, "aten::sum")
    del counted
    return total


def chunks(rows: Size, vocab_size: Size, width: Size) -> list[int]:
    """How many tokens each chunk has: as many as make its logits about as large as the hidden states of all."""
    if not (isinstance(rows, int) and isinstance(vocab_size, int) and isinstance(width, int)):
        raise NotModelledError("chunks of many sizes at once", where="loss")
    factor = -(-vocab_size // width)
    size = 1 << (-(-rows // factor) - 1).bit_length()
    return [min(size, rows - start) for start in range(0, rows, size)]


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """`LigerCrossEntropyLoss()(logits, target)`."""
    return apply(LigerCrossEntropy, logits, target)  # type: ignore[no-any-return]


def linear_causal_lm_loss(hidden_states: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """`lce_forward`: hidden states (batch, length, width) without the last, labels without the first."""
    kept = hidden_states.shape[1] - 1
    shift_hidden_states = hidden_states.narrow(1, kept).contiguous()
    shift_labels = labels.narrow(1, kept).contiguous()
    shift_hidden_states = shift_hidden_states.view(-1, hidden_states.shape[-1])
    return apply(LigerFusedLinearCrossEntropy, shift_hidden_states, weight, shift_labels.view(-1))  # type: ignore[no-any-return]
