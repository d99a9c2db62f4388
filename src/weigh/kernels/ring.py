"""Attention of a sequence that ranks share: PyTorch's ring attention, and DeepSpeed's Ulysses.

Read: torch/distributed/tensor/experimental/_context_parallel/_attention.py (2.13), `_templated_ring_attention` and its
backward pass, with load balancing: a rank has two pieces of the sequence, one from either end. FlashAttention runs once
for every rank's keys and values, and the results are merged in fp32. Local variables are upstream's. Keys and values
of the others are gathered once ("allgather", the default) or come from neighbour to neighbour ("alltoall"). What a
collective reads lives until it is waited for.

Ulysses (deepspeed/runtime/sequence_parallel/ulysses_sp.py, `UlyssesSPAttentionHF`, as accelerate uses it) gives every
rank the whole sequence of a share of the heads instead, by one all-to-all for each of the three inputs and one for the
output; keys and values of fewer heads than ranks are repeated first.

Left out: other kernels than FlashAttention, sequences that are not causal.
"""

from __future__ import annotations

from typing import Any

from weigh.dims import Size
from weigh.dtypes import BFLOAT16, FLOAT16, FLOAT32
from weigh.errors import NotModelledError, UsageError
from weigh.ghost import ops
from weigh.ghost.ops.attention import FlashAttention, FlashAttentionBackward
from weigh.ghost.ops.creation import new_like
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.state import no_grad, state
from weigh.ghost.tensor import Tensor, empty
from weigh.kernels.cuda import GpuFlashAttentionBackward
from weigh.trace.events import COMMUNICATION

ALLGATHER, ALLTOALL, ULYSSES = METHODS = ("allgather", "alltoall", "ulysses")


class _Rotater:
    """`_AllGatherRotater` and `_AllToAllRotater`: what the others' keys and values come through."""

    def __init__(self, size: int, gathers: bool) -> None:
        self.size = size
        self.gathers = gathers
        self.buffer: Tensor | None = None
        self.read: Tensor | None = None
        """What the collective under way reads."""

    def exchange_buffers(self, current: Tensor) -> None:
        """Begin to send."""
        if self.gathers and self.buffer is not None:
            return
        self.read = None if state.traced else current  # a fake process group reads nothing
        elements = current.numel * (self.size if self.gathers else 1)
        name = "c10d::all_gather_into_tensor" if self.gathers else "c10d::all_to_all_single"
        self.buffer = empty((elements,), current.dtype, name, purpose=COMMUNICATION)

    def next_buffer(self) -> Tensor:
        """Wait, and take what has come."""
        self.read = None
        assert self.buffer is not None
        return self.buffer.narrow(0, self.buffer.numel // self.size) if self.gathers else self.buffer


def _half(x: Tensor) -> Tensor:
    """One of the two pieces of the sequence."""
    return x.narrow(2, x.shape[2] // 2)


class _Merger:
    """`_SDPAMerger`: outputs and log-sum-exps so far, in fp32."""

    def __init__(self) -> None:
        self.out: Tensor | None = None
        self.lse: Tensor | None = None

    def step(self, out: Tensor, lse: Tensor, partial: bool) -> None:
        """`step` and `_merge_one`."""
        block_out, block_lse = ops.to(out, FLOAT32), ops.to(lse, FLOAT32).unsqueeze(3)
        del out, lse
        if self.out is None or self.lse is None:
            self.out, self.lse = block_out, block_lse
            return
        lse = _half(self.lse) if partial else self.lse
        out = _half(self.out) if partial else self.out
        out = out - ops.sigmoid(block_lse - lse) * (out - block_out)
        lse = lse - ops.sigmoid(lse - block_lse)  # logsigmoid: another tensor of that size
        if partial:
            self.lse = _partly_new(self.lse, lse)
            self.out = _partly_new(self.out, out)
        else:
            self.lse, self.out = lse, out


def _partly_new(original: Tensor, new: Tensor) -> Tensor:
    """`_partial_update`: the two pieces put together again."""
    return ops.cat([_half(original), new], 2)


class RingAttention(FlashAttention):
    """FlashAttention in a ring. Saves what FlashAttention does, of this rank's share of the sequence."""

    size = 1
    rank = 0
    gathers = True

    @classmethod
    def forward(cls, ctx: Any, query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> list[Tensor]:
        if not causal:
            raise NotModelledError("ring attention that is not causal", where="context")
        with no_grad():
            outputs = cls.ring(query, key, value)
        if ctx:
            cls.keep(ctx, query, key, value, outputs, causal)
        return outputs

    @classmethod
    def ring(cls, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """`_templated_ring_attention`."""
        key, value = ops.contiguous(key), ops.contiguous(value)
        merger, rotater = _Merger(), _Rotater(cls.size, cls.gathers)
        rest: list[Tensor] = []
        for i in range(cls.size):
            if i > 0:
                next_kv = rotater.next_buffer()
                key, value = _as(next_kv, key), _as(next_kv, value)
                del next_kv
            if i < cls.size - 1:
                rotater.exchange_buffers(ops.cat([key.view(-1), value.view(-1)], 0))
            if i == 0:
                q, k, v, partial = query, key, value, False
            elif i <= cls.rank:
                q, k, v, partial = query, _half(key), _half(value), False
            else:
                q, k, v, partial = _half(query), key, value, True
            out, lse, *rest = FlashAttention.forward(None, q, k, v, causal=i == 0)
            merger.step(out, lse, partial)
        assert merger.out is not None
        assert merger.lse is not None
        return [ops.to(merger.out, query.dtype), merger.lse.squeeze(3), *rest]

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> list[Any]:
        query, key, value, *_ = ctx.unpack()
        return apply(cls.backward_row, grad, query, key, value, causal=True)[:3]  # type: ignore[no-any-return]

    backward_row: type[FlashAttentionBackward] = FlashAttentionBackward


class RingAttentionBackward(FlashAttentionBackward):
    """`_templated_ring_attention_backward`: gradients are summed in fp32, those of keys and values on their way."""

    name = "RingAttentionBackward"
    size = 1
    rank = 0
    gathers = True

    @classmethod
    def forward(
        cls, ctx: Any, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *, causal: bool
    ) -> list[Tensor]:
        grad_query, grad_key, grad_value = (new_like(t, "aten::zeros_like", FLOAT32) for t in (query, key, value))
        key, value = ops.contiguous(key), ops.contiguous(value)
        kv_rotater, dkv_rotater = _Rotater(cls.size, cls.gathers), _Rotater(cls.size, False)
        one = FlashAttentionBackward if state.traced else GpuFlashAttentionBackward
        for i in range(cls.size):
            if i > 0:
                buffer = kv_rotater.next_buffer()
                key, value = _as(buffer, key), _as(buffer, value)
                del buffer
            if i != cls.size - 1:
                next_kv = ops.cat([key.view(-1), value.view(-1)], 0)
                kv_rotater.exchange_buffers(next_kv)
            given: list[Tensor]
            if i == 0:
                given = [grad, query, key, value]
            elif i <= cls.rank:
                given = [grad, query, _half(key), _half(value)]
            else:
                lse = empty((*query.shape[:2], query.shape[2] // 2), FLOAT32, "aten::clone")  # a half, made contiguous
                given = [_half(grad), _half(query), key, value, lse]
                del lse
            made = one.forward(None, *given[:4], causal=i == 0)
            if i > 0:
                next_grad_kv = dkv_rotater.next_buffer()
                grad_key, grad_value = _as(next_grad_kv, grad_key), _as(next_grad_kv, grad_value)
                if i <= cls.rank:
                    grad_key = _partly_new(grad_key, _half(grad_key))
                    grad_value = _partly_new(grad_value, _half(grad_value))
            next_grad_kv = ops.cat([grad_key.reshape(-1), grad_value.reshape(-1)], 0)
            dkv_rotater.exchange_buffers(next_grad_kv)
            if i > cls.rank:
                grad_query = _partly_new(grad_query, _half(grad_query))
        assert made
        grad_query = ops.to(grad_query, query.dtype)
        came = ops.to(dkv_rotater.next_buffer(), key.dtype)
        return [grad_query, _as(came, key), _as(came, value)]


def _as(flat: Tensor, like: Tensor) -> Tensor:
    """A piece of a flat buffer, in the shape of another tensor."""
    return flat.narrow(0, like.numel).view(*like.shape)


class AllToAll(Op):
    """`_DimZeroAllToAll`: the first dimension is that of the ranks. Its gradient goes the other way."""

    name = "c10d::all_to_all_single"
    source = "deepspeed/sequence/layer.py"

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = empty(x.shape, x.dtype, "c10d::all_to_all_single", purpose=COMMUNICATION)
        with no_grad():
            ops.contiguous(x)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        return [apply(AllToAll, grad)]

    @staticmethod
    def flops(out: Tensor, *tensors: Any) -> Size:
        return 0


def shared_attention(method: str, ranks: int, rank: int, kernels: dict[str, Any]) -> dict[str, Any]:
    """The rows and choices that take the place of `kernels` where `ranks` share each sequence.

    Raises:
        UsageError: an unknown method.
    """
    if method not in METHODS:
        raise UsageError(f"there is no {method!r}", where="context_method", hint=f"Say {', '.join(METHODS)}.")
    if method == ULYSSES:
        return {"scaled_dot_product_attention": _ulysses(kernels["scaled_dot_product_attention"], ranks)}
    how = {"size": ranks, "rank": rank, "gathers": method == ALLGATHER}
    back = type("RingAttentionBackward", (RingAttentionBackward,), how)
    ring = type("RingAttention", (RingAttention,), {**how, "backward_row": back})
    choose = kernels["scaled_dot_product_attention"]
    return {FlashAttention.name: ring, "scaled_dot_product_attention": _flash_alone(choose)}


def _flash_alone(choose: Any) -> Any:
    """Refuses what FlashAttention does not take."""

    def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *rest: Any) -> Tensor:
        dtype = query.dtype if state.autocast is None else state.autocast.dtype
        if mask is not None or dtype not in (BFLOAT16, FLOAT16):
            raise NotModelledError(
                "attention of a shared sequence by another kernel than FlashAttention",
                where="context",
                hint="It runs in bf16 and fp16, without a mask.",
            )
        return choose(query, key, value, mask, *rest)  # type: ignore[no-any-return]

    return attention


def _ulysses(choose: Any, ranks: int) -> Any:
    def attention(
        query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, causal: bool, grouped: bool
    ) -> Tensor:
        if mask is not None:
            raise NotModelledError("Ulysses with a mask", where="context")
        query, key, value = (_whole_sequence(t, ranks) for t in (query, key, value))
        out = choose(query, key, value, mask, dropout, causal, grouped)
        return _own_piece(out.transpose(1, 2).contiguous(), ranks)

    return attention


def _whole_sequence(x: Tensor, ranks: int) -> Tensor:
    """`_combine_local_sequences`: (B, heads, T / ranks, size) -> (B, heads / ranks, T, size)."""
    batch, heads, length, size = x.shape
    x = x.permute(2, 0, 1, 3)
    if heads % ranks and not ranks % heads:
        x = ops.repeat_interleave(x, int(ranks // heads), 2)  # type: ignore[arg-type]
    elif heads % ranks:
        what = f"{ranks} ranks do not divide {heads} heads"
        raise UsageError(what, where="context", hint="Give a divisor, or another context_method.")
    local = max(heads // ranks, 1)
    x = ops.contiguous(x.reshape(length, batch, ranks, local, size).permute(2, 0, 1, 3, 4))
    out: Tensor = apply(AllToAll, x)
    return ops.contiguous(out.reshape(length * ranks, batch, local, size).permute(1, 2, 0, 3))


def _own_piece(x: Tensor, ranks: int) -> Tensor:
    """`_partition_global_sequence`: (B, T, heads / ranks, size) -> (B, heads, T / ranks, size)."""
    batch, length, heads, size = x.shape
    x = x.reshape(batch, length, heads * size).permute(1, 0, 2)
    x = ops.contiguous(x.reshape(ranks, length // ranks, batch, heads * size))
    out: Tensor = apply(AllToAll, x)
    out = out.permute(1, 2, 0, 3).reshape(length // ranks, batch, ranks * heads * size)
    return out.reshape(length // ranks, batch, ranks * heads, size).permute(1, 2, 0, 3)
