"""Apple's cut cross entropy: the loss with the output layer, of which no logits are ever kept.

Read: cut-cross-entropy 25.1.1, cce.py, cce_lse_forward.py, indexed_dot.py, cce_backward.py, utils.py, with its labels
shifted (`shift=True`) and its default filter. Kept are the hidden states, a number a token, the places of the labels
and the mean logit of each word, by which the backward pass orders the vocabulary. It wants hidden states of 16 bits.
"""

from __future__ import annotations

from typing import Any

from weigh.dims import Size
from weigh.dtypes import BFLOAT16, BOOL, FLOAT16, FLOAT32, INT32, INT64, UINT8
from weigh.errors import UsageError
from weigh.ghost import ops
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.state import no_grad
from weigh.ghost.tensor import Tensor, empty
from weigh.trace.events import TEMPORARY

LOCK_ROWS, LOCK_COLUMNS = 128, 64
"""Tokens that share a lock on the way forward; widths of a gradient that share one on the way back."""


class LinearCrossEntropy(Op):
    """The mean loss of hidden states (n, width) under a head (vocabulary, width), () in fp32."""

    name = "LinearCrossEntropyFunction"
    source = "cut_cross_entropy/cce.py"

    @classmethod
    def forward(cls, ctx: Any, hidden: Tensor, weight: Tensor, valids: Tensor, targets: Tensor) -> Tensor:
        rows, words = valids.shape[0], weight.shape[0]
        lse = empty((rows,), FLOAT32, cls.name)
        locks = empty((-(-rows // LOCK_ROWS), 4), UINT8, cls.name)
        logit_avg = empty((words,), FLOAT32, cls.name) if ctx else None
        del locks
        nll = empty((rows,), FLOAT32, cls.name)
        with no_grad():
            loss: Tensor = ops.sum(nll, (0,))
        if ctx:
            ctx.save(hidden, weight, lse, targets, valids, logit_avg)
        return loss

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> list[Any]:
        hidden, weight, _lse, _targets, valids, logit_avg = ctx.unpack()
        ordered = empty(logit_avg.shape, FLOAT32, "aten::sort")
        places = empty(logit_avg.shape, INT64, "aten::sort")
        vocab_ordering = empty(logit_avg.shape, INT32, "aten::_to_copy")
        del ordered, places
        de = ops.zeros_like(hidden, TEMPORARY)
        dc = ops.zeros_like(weight, TEMPORARY, hidden.dtype) if ctx.needs[1] else None
        locks = -(-weight.shape[1] // LOCK_COLUMNS)
        held = [empty((-(-n // locks), locks), INT32, cls.name) for n in (valids.shape[0], weight.shape[0])]
        gradient = None if dc is None else dc.to(weight.dtype)
        del held, vocab_ordering, dc
        return [de, gradient, None, None]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        hidden, weight = tensors[:2]
        return 2 * hidden.numel * weight.shape[0]  # type: ignore[no-any-return]


def _flat_valids(targets: Tensor) -> Tensor:
    """`_build_flat_valids`: where the labels are that count, every one of them."""
    shifted = targets.narrow(-1, targets.shape[-1] - 1)
    counted = empty(shifted.shape, BOOL, "aten::ne")
    found = empty((shifted.numel, 2), INT64, "aten::nonzero")
    valids = empty(found.shape, INT32, "aten::_to_copy")
    del counted, found
    return empty(valids.shape[:1], INT64, "aten::sum")


def linear_causal_lm_loss(hidden_states: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """`linear_cross_entropy(e, c, labels, shift=True)`.

    Raises:
        UsageError: the hidden states are not of 16 bits.
    """
    if hidden_states.dtype not in (BFLOAT16, FLOAT16):
        hint = "Train in bf16 or fp16."
        raise UsageError("cut cross entropy wants hidden states of 16 bits", where="loss", hint=hint)
    hidden_states, labels = hidden_states.contiguous(), labels.contiguous()
    valids = _flat_valids(labels)
    hidden_states = hidden_states.view(-1, hidden_states.shape[-1])
    return apply(LinearCrossEntropy, hidden_states, weight, valids, labels.view(-1))  # type: ignore[no-any-return]
