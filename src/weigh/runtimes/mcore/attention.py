"""Megatron Core's attention: with one layer for queries, keys and values, and multi-latent.

Mirrors `transformer/attention.py`, `dot_product_attention.py` and `multi_latent_attention.py` (Megatron Core 0.17).
"""

from __future__ import annotations

from weigh.dtypes import DType
from weigh.ghost import nn, ops
from weigh.ghost.ops.table import apply
from weigh.ghost.tensor import Tensor, empty
from weigh.runtimes.mcore import rows
from weigh.runtimes.mcore.config import MegatronConfig
from weigh.runtimes.mcore.layers import FLASH, UNFUSED, Norm, ParallelLinear, Setup, with_bias
from weigh.runtimes.mcore.recompute import WithoutOutput
from weigh.techniques.checkpointing import reentrant_checkpoint


class CoreAttention(nn.Module):
    """`TEDotProductAttention`, or `DotProductAttention` where it is unfused."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.setup = setup

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(s, b, heads, width) each -> (s, b, heads x width)."""
        kind = self.setup.attention
        if kind == UNFUSED:
            return self._unfused(q, k, v)
        if kind == FLASH:  # flash-attn wants the batch first; the tensors say (s, b, ...) all the same
            q, k, v = (_batch_first(t) for t in (q, k, v))
            out = self._over_ranks(q, k, v)
            out = exchanged_batch(out)
        else:
            if not _layout_supported(q, k, v):
                q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
            out = self._over_ranks(q, k, v)
        return out.view(*out.shape[:2], out.shape[2] * out.shape[3])

    def _over_ranks(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.setup.context == 1:
            return apply(rows.CoreAttention, q, k, v)  # type: ignore[no-any-return]
        sharing = {"p2p": 1, "a2a": self.setup.context}.get(self.setup.context_exchange, self.setup.context_heads)
        if sharing == 1:
            return self._around(q, k, v, self.setup.context)
        q, k, v = (
            rows.exchanged(t, "nccl::all_to_all", (t.shape[0] * sharing, t.shape[1], t.shape[2] // sharing, t.shape[3]))
            for t in (q, k, v)
        )
        out = self._around(q, k, v, self.setup.context // sharing)
        shape = out.shape
        return rows.exchanged(out, "nccl::all_to_all", (shape[0] // sharing, shape[1], shape[2] * sharing, shape[3]))

    @staticmethod
    def _around(q: Tensor, k: Tensor, v: Tensor, ranks: int) -> Tensor:
        """Over a ring of ranks."""
        if ranks == 1:
            return apply(rows.CoreAttention, q, k, v)  # type: ignore[no-any-return]
        return apply(rows.RingAttention, q, k, v, ranks=ranks)  # type: ignore[no-any-return]

    def _unfused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        setup = self.setup
        length, batch, heads, _ = q.shape
        shape = batch * heads, length, k.shape[0]
        if setup.local:
            rows.memory_buffer(shape, q, setup.scratch)
            scores = apply(rows.Scores, q, k)
        else:
            preallocated = empty(shape, q.dtype, "aten::empty")
            scores = apply(rows.Scores, q, k)
            del preallocated
        if setup.local and not setup.masked_softmax_fusion:
            probs = apply(rows.TorchSoftmax, scores, fp32=setup.softmax_in_fp32)
        else:
            probs = apply(rows.MaskedSoftmax, scores)
        del scores
        probs = ops.dropout(probs, setup.attention_dropout, True)
        context = apply(rows.Context, probs, v)
        return rows.exchanged(context, "aten::contiguous", (length, batch, heads * v.shape[-1]))


def _batch_first(t: Tensor) -> Tensor:
    """`t.transpose(0, 1).contiguous()`: a copy, unless there is one sequence and the tensor is contiguous."""
    if t.shape[1] == 1 and t.strides is None:
        return t
    return rows.exchanged(t, "aten::contiguous")


def exchanged_batch(t: Tensor) -> Tensor:
    """The same for the output, on the way back."""
    return t if t.shape[1] == 1 else rows.exchanged(t, "aten::contiguous")


def _layout_supported(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """`get_qkv_layout`: all in one storage head by head (`sbh3d`), or each contiguous on its own."""
    if q.storage is k.storage and k.storage is v.storage:
        return q.shape == k.shape and k.shape == v.shape
    return q.strides is None and k.strides is None and v.strides is None


def attended(core: CoreAttention, setup: Setup, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The core of attention, run again in the backward pass where that is asked for."""
    if "core_attn" in setup.recompute:
        return reentrant_checkpoint(core, query, key, value, positional=3)  # type: ignore[no-any-return]
    out: Tensor = core(query, key, value)
    return out


class SelfAttention(nn.Module):
    """Attention with one layer for queries, keys and values, the norm before it in one with that layer."""

    role = nn.ATTENTION

    def __init__(self, config: MegatronConfig, setup: Setup, dtype: DType) -> None:
        super().__init__()
        self.config, self.setup = config, setup
        width, ranks = config.kv_channels, setup.tensor
        self.groups = max(1, config.num_query_groups // ranks)
        self.heads = config.num_attention_heads // ranks
        both = (config.num_attention_heads + 2 * max(config.num_query_groups, ranks)) * width
        self.input_layernorm = Norm(config, config.hidden_size, dtype)
        self.linear_qkv = ParallelLinear(setup, config.hidden_size, both, dtype, "column", config.add_qkv_bias)
        inside = config.num_attention_heads * width
        self.linear_proj = ParallelLinear(setup, inside, config.hidden_size, dtype, "row", config.add_bias_linear)
        self.q_layernorm = Norm(config, width, dtype) if config.qk_layernorm else None
        self.k_layernorm = Norm(config, width, dtype) if config.qk_layernorm else None
        self.core_attention = CoreAttention(setup)

    def forward(self, hidden_states: Tensor) -> Tensor:
        width, ratio = self.config.kv_channels, self.heads // self.groups
        mixed_qkv = with_bias(self.linear_qkv(self.input_layernorm(hidden_states)), self.linear_qkv.bias)
        mixed_qkv = mixed_qkv.view(*mixed_qkv.shape[:2], self.groups, (ratio + 2) * width)
        query, key, value = apply(rows.Split, mixed_qkv, sizes=[ratio * width, width, width])
        del mixed_qkv
        query = query.reshape(*query.shape[:2], self.heads, width)
        if self.q_layernorm is not None and self.k_layernorm is not None:
            query, key = self.q_layernorm(query), self.k_layernorm(key)
        if self.config.position_embedding_type == "rope":
            query, key = apply(rows.Rotary, query), apply(rows.Rotary, key)
        out = attended(self.core_attention, self.setup, query, key, value)
        del query, key, value
        projected: Tensor = self.linear_proj(out)
        return projected


class MLASelfAttention(nn.Module):
    """Multi-latent attention: queries, and keys with values, out of latents that are normed on the way up."""

    role = nn.ATTENTION

    def __init__(self, config: MegatronConfig, setup: Setup, dtype: DType) -> None:
        super().__init__()
        self.config, self.setup = config, setup
        heads, hidden = config.num_attention_heads, config.hidden_size
        self.heads = heads // setup.tensor
        head = config.qk_head_dim + config.qk_pos_emb_head_dim
        self.input_layernorm = Norm(config, hidden, dtype)
        if config.q_lora_rank:
            self.linear_q_down_proj = ParallelLinear(setup, hidden, config.q_lora_rank, dtype, "all")
            self.q_layernorm = Norm(config, config.q_lora_rank, dtype)
        self.linear_q_up_proj = ParallelLinear(setup, config.q_lora_rank or hidden, heads * head, dtype, "column")
        latent = config.kv_lora_rank + config.qk_pos_emb_head_dim
        self.linear_kv_down_proj = ParallelLinear(setup, hidden, latent, dtype, "all")
        self.kv_layernorm = Norm(config, config.kv_lora_rank, dtype)
        up = heads * (config.qk_head_dim + config.v_head_dim)
        self.linear_kv_up_proj = ParallelLinear(setup, config.kv_lora_rank, up, dtype, "column")
        self.linear_proj = ParallelLinear(setup, heads * config.v_head_dim, hidden, dtype, "row")
        self.core_attention = CoreAttention(setup)

    def forward(self, hidden_states: Tensor) -> Tensor:
        config = self.config
        norm = WithoutOutput(self.input_layernorm) if "layernorm" in self.setup.recompute else None
        x = self.input_layernorm(hidden_states) if norm is None else norm(hidden_states)
        q = self.linear_q_down_proj(x) if config.q_lora_rank else x
        kv_combined = self.linear_kv_down_proj(x)
        del x
        sizes = [config.kv_lora_rank, config.qk_pos_emb_head_dim]
        compressed, k_pos_emb = apply(rows.Split, kv_combined, sizes=sizes)
        del kv_combined
        up = WithoutOutput(self._up) if "mla_up_proj" in self.setup.recompute else None
        query, key, value = (self._up if up is None else up)(q, compressed, k_pos_emb)
        del q, compressed, k_pos_emb
        out = attended(self.core_attention, self.setup, query, key, value)
        del query, key, value
        out = out if up is None else up.drop(out)
        projected: Tensor = self.linear_proj(out)
        return projected if norm is None else norm.drop(projected)

    def _up(self, q: Tensor, compressed: Tensor, k_pos_emb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`qkv_up_proj_and_rope_apply`: latents to queries, keys and values of every head."""
        config = self.config
        rotary, plain = config.qk_pos_emb_head_dim, config.qk_head_dim
        if config.q_lora_rank:
            q = self.q_layernorm(q)
        q = self.linear_q_up_proj(q)
        kv = self.linear_kv_up_proj(self.kv_layernorm(compressed))
        del compressed
        q = q.view(*q.shape[:2], self.heads, plain + rotary)
        kv = kv.view(*kv.shape[:2], self.heads, plain + config.v_head_dim)
        k_no_pe, value = apply(rows.Split, kv, sizes=[plain, config.v_head_dim])
        del kv
        query = rows.exchanged(q, "aten::cat")
        del q
        key = apply(rows.JoinKey, k_no_pe, k_pos_emb)
        del k_no_pe, k_pos_emb
        return query, key, value.contiguous()
