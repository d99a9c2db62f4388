"""Unsloth's Triton kernels, as fms-acceleration's "fast kernels" put them into transformers' models.

Read: fms-acceleration, plugins/fused-ops-and-kernels: kernels/unsloth/*.py and models/*.py. They work in place: the
gradient of the logits is written over the logits, that of a norm's input over the incoming gradient, and queries and
keys are rotated where they lie. A norm's weight gets no gradient at all.
"""

from __future__ import annotations

from typing import Any

from weigh.dtypes import BOOL, FLOAT32, INT64
from weigh.ghost import ops
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.tensor import Tensor, empty

MODEL_TYPES = ("gpt_bigcode", "granite", "llama", "mistral", "mixtral")
"""Families that upstream patches and whose classes here have all that it replaces."""

MAX_FUSED_SIZE = 65536
"""Larger vocabularies are read in chunks of so many."""


class FastCrossEntropyLoss(Op):
    """The loss of every row. Saves the logits, of which the backward pass makes their gradient."""

    name = "Fast_CrossEntropyLoss"
    source = "kernels/unsloth/cross_entropy_loss.py, class Fast_CrossEntropyLoss"

    @classmethod
    def forward(cls, ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        rows, vocab_size = logits.shape
        losses = empty((rows,), FLOAT32, cls.name)
        if vocab_size <= MAX_FUSED_SIZE:
            logsumexp = empty((rows,), FLOAT32, cls.name)
        else:
            chunks = empty((rows, -(-vocab_size // MAX_FUSED_SIZE)), FLOAT32, cls.name)
            logsumexp = _logsumexp(chunks)
            del chunks
            empty((rows,), BOOL, "aten::eq")
        if ctx:
            ctx.save(logits, logsumexp, labels)
        return losses

    @staticmethod
    def backward(ctx: Any, dlosses: Tensor) -> list[Any]:
        logits, _logsumexp, _labels = ctx.unpack()
        return [logits.alias(), None]


def _logsumexp(x: Tensor) -> Tensor:
    """`torch.logsumexp(x, dim=1)` (ReduceOps.cpp): the maxima, which of them are infinite, and the shifted numbers."""
    maxima = empty((x.shape[0], 1), x.dtype, "aten::amax")
    out = empty((x.shape[0],), x.dtype, "aten::logsumexp")
    magnitude = empty((x.shape[0],), x.dtype, "aten::abs")
    infinite = empty((x.shape[0],), BOOL, "aten::eq")
    del magnitude, infinite
    shifted = empty(x.shape, x.dtype, "aten::sub")
    del maxima, shifted
    return out


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """`FastCrossEntropyLoss()(logits, target)`: the sum over the labels that count."""
    losses: Tensor = apply(FastCrossEntropyLoss, logits, target)
    counted = empty(target.shape, BOOL, "aten::ne")
    n_items = empty((), INT64, "aten::count_nonzero")
    del counted
    return ops.sum(losses, (0,)) / n_items


class FastRMSLayernorm(Op):
    """Saves the input, the weight and a number a row; the input's gradient is written over the incoming one."""

    name = "Fast_RMS_Layernorm"
    source = "kernels/unsloth/rms_layernorm.py, class Fast_RMS_Layernorm"

    @classmethod
    def forward(cls, ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        flat = x.view(-1, x.shape[-1])
        out = empty(flat.shape, x.dtype, cls.name)
        inverse = empty(flat.shape[:1], FLOAT32, cls.name)
        if ctx:
            ctx.save(flat, weight, inverse)
        return out.view(*x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        ctx.unpack()
        return [grad.view(-1, grad.shape[-1]).view(*grad.shape), None]


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """`fast_rms_layernorm`."""
    return apply(FastRMSLayernorm, x, weight)  # type: ignore[no-any-return]


class FastRoPEEmbedding(Op):
    """Rotates in place, on the way back too, where a copy is made of gradients that do not lie in order."""

    name = "Fast_RoPE_Embedding"
    source = "kernels/unsloth/rope_embedding.py, class Fast_RoPE_Embedding"
    view = True

    @staticmethod
    def forward(ctx: Any, x: Tensor, *, tables: tuple[Tensor, Tensor]) -> Tensor:
        if ctx:
            ctx.meta = tables
        batch, length, heads, width = x.shape
        return x.view(batch * length, heads * width).view(*x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        batch, length, heads, width = grad.shape
        return [grad.reshape(batch * length, heads * width).view(*grad.shape)]


def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """`fast_rope_embedding` of queries and keys (batch, heads, length, width)."""
    tables = cos.squeeze(0), sin.squeeze(0)
    q = apply(FastRoPEEmbedding, q.transpose(1, 2), tables=tables).transpose(1, 2)
    k = apply(FastRoPEEmbedding, k.transpose(1, 2), tables=tables).transpose(1, 2)
    return q, k


KERNELS: dict[str, Any] = {
    "cross_entropy": cross_entropy,
    "rms_norm": rms_norm,
    "apply_rotary_pos_emb": apply_rotary_pos_emb,
}
