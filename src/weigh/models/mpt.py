"""MPT, as `transformers/models/mpt/modeling_mpt.py` (5.23) writes it.

Shapes: B batch, T length, D hidden size, N heads, H head width, V vocabulary.

Upstream never reads `no_bias`, `learned_pos_emb`, `qk_ln` and `expansion_ratio`: no bias, ALiBi, an MLP four times as
wide. Its norms have their biases taken away.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dims import Size
from weigh.dtypes import BOOL, INT32, DType
from weigh.errors import InputError
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models import layout
from weigh.models.common import (
    Cache,
    CausalModel,
    CausalOutput,
    LayerCache,
    StaticCache,
    causal_lm_loss,
    check_positions,
    create_causal_mask,
    slice_logits_to_keep,
)
from weigh.models.config import Keys
from weigh.records import dataclass

MODEL_TYPES = ("mpt",)


@dataclass(frozen=True, slots=True)
class MptConfig:
    """The settings of `MptConfig` that shape memory."""

    d_model: int = 2048
    n_heads: int = 16
    n_layers: int = 24
    max_seq_len: int = 2048
    vocab_size: int = 50368
    attn_pdrop: float = 0.0
    clip_qkv: bool = False
    tie_word_embeddings: bool = True

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> MptConfig:
        """From a `config.json`. Raises `InputError` for values that cannot be."""
        keys = Keys(config, where)
        width = keys.size("d_model", "hidden_size", default=2048)
        heads = keys.size("n_heads", "num_attention_heads", default=16)
        keys.divides("n_heads", heads, "d_model", width)
        attention = config.get("attn_config") or {}
        if not isinstance(attention, Mapping):
            raise InputError(f"is {attention!r}", where=f"{where}: attn_config", hint="Give an object.")
        inner = Keys(attention, f"{where}: attn_config")
        return cls(
            d_model=width,
            n_heads=heads,
            n_layers=keys.size("n_layers", "num_hidden_layers", default=24),
            max_seq_len=keys.size("max_seq_len", default=2048),
            vocab_size=keys.size("vocab_size", default=50368),
            attn_pdrop=inner.fraction("attn_pdrop", default=0.0),
            clip_qkv=bool(attention.get("clip_qkv")),
            tie_word_embeddings=keys.flag("tie_word_embeddings", default=True),
        )


def build_mpt_alibi_tensor(num_heads: int, sequence_length: Size) -> Tensor:
    """A bias for every head, (N, 1, length) in fp32."""
    alibi = ops.arange(sequence_length, INT32).view(1, 1, 1, sequence_length)
    num_heads_power_of_2 = 1 << (num_heads - 1).bit_length()
    base = ops.arange(num_heads_power_of_2).float()
    base = base * 0.5
    slopes = ops.reciprocal(ops.power(base, base)) * 1.0
    slopes = slopes.view(1, num_heads_power_of_2, 1, 1)
    if num_heads_power_of_2 != num_heads:
        odd, even = slopes.narrow(1, num_heads_power_of_2 // 2), slopes.narrow(1, num_heads_power_of_2 // 2)
        slopes = ops.cat([odd, even], 1).narrow(1, num_heads)
    alibi = alibi * slopes
    return alibi.squeeze(0)


class MptAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: MptConfig, dtype: DType) -> None:
        super().__init__()
        width = config.d_model
        self.n_heads = config.n_heads
        self.head_dim = width // config.n_heads
        self.attn_dropout_p = config.attn_pdrop
        self.clip_qkv = config.clip_qkv
        self.Wqkv = nn.Linear(width, 3 * width, dtype)
        self.out_proj = nn.Linear(width, width, dtype)

    def forward(
        self, hidden_states: Tensor, position_bias: Tensor, cache: Cache | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        batch_size, seq_length, width = hidden_states.shape
        mixed_qkv = self.Wqkv(hidden_states)
        if self.clip_qkv:
            mixed_qkv = ops.clamp_range(mixed_qkv)
        query_states, key_states, value_states = mixed_qkv.split(width, dim=2)
        shape = (batch_size, seq_length, self.n_heads, self.head_dim)
        query_states = query_states.reshape(*shape).transpose(1, 2)
        key_states = key_states.reshape(*shape).transpose(1, 2)
        value_states = value_states.reshape(*shape).transpose(1, 2)
        if cache is not None:
            key_states, value_states = cache.update(key_states, value_states, self.path)
        attention_scores = query_states.matmul(key_states.transpose(-1, -2)) * 0.125
        past_length = cache.offset(None) if cache is not None else 0
        query_length = past_length + seq_length  # type: ignore[operator]  # a tensor where the cache is static
        position_bias = position_bias.narrow(2, key_states.shape[-2])
        attention_scores = attention_scores + position_bias
        if mask is not None:
            attention_scores = ops.masked_fill(attention_scores, mask)
        attn_weights = ops.softmax(attention_scores.float()).to(value_states.dtype)
        attn_weights = ops.dropout(attn_weights, self.attn_dropout_p, self.training)
        context_states = attn_weights.matmul(value_states)
        context_states = context_states.permute(0, 2, 1, 3).contiguous().view(batch_size, seq_length, width)
        attn_output = self.out_proj(context_states)
        del past_length, query_length
        return attn_output, attn_weights


class MptMLP(nn.Module):
    role = nn.MLP

    def __init__(self, config: MptConfig, dtype: DType) -> None:
        super().__init__()
        width = config.d_model
        self.up_proj = nn.Linear(width, 4 * width, dtype)
        self.act = nn.Activation("gelu")
        self.down_proj = nn.Linear(4 * width, width, dtype)
        self.hidden_dropout = config.attn_pdrop

    def forward(self, hidden_states: Tensor, residual: Tensor) -> Tensor:
        hidden_states = self.act(self.up_proj(hidden_states))
        intermediate_output = self.down_proj(hidden_states)
        output = ops.dropout(intermediate_output, self.hidden_dropout, self.training)
        output = output + residual
        return output


class MptBlock(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: MptConfig, dtype: DType) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.d_model, dtype, bias=False)
        self.attn = MptAttention(config, dtype)
        self.norm_2 = nn.LayerNorm(config.d_model, dtype, bias=False)
        self.ffn = MptMLP(config, dtype)
        self.resid_attn_dropout = nn.Dropout(config.attn_pdrop)

    def forward(
        self, hidden_states: Tensor, position_bias: Tensor, mask: Tensor | None, layer_past: Cache | None
    ) -> tuple[Tensor, Tensor]:
        layernorm_output = self.norm_1(hidden_states)
        residual = hidden_states
        attn_outputs, attn_weights = self.attn(layernorm_output, position_bias, layer_past, mask)
        hidden_states = self.resid_attn_dropout(attn_outputs) + residual
        layernorm_output = self.norm_2(hidden_states)
        residual = hidden_states
        output = self.ffn(layernorm_output, residual)
        return output, attn_weights


class MptModel(nn.Module):
    def __init__(self, config: MptConfig, dtype: DType) -> None:
        super().__init__()
        self.num_heads = config.n_heads
        self.max_seq_len = config.max_seq_len
        self.wte = nn.Embedding(config.vocab_size, config.d_model, dtype)
        self.blocks = nn.Stack("transformer.blocks", config.n_layers, lambda _: MptBlock(config, dtype))
        self.norm_f = nn.LayerNorm(config.d_model, dtype, bias=False)

    def forward(self, input_ids: Tensor, cache: Cache | None, attention_mask: Tensor | None) -> Tensor:
        length = cache.max_length if isinstance(cache, StaticCache) else input_ids.shape[1]
        grown = None if isinstance(cache, StaticCache) else cache
        check_positions("MPT", "max_seq_len", self.max_seq_len, length, grown)
        inputs_embeds = self.wte(input_ids)
        hidden_states = inputs_embeds
        alibi = build_mpt_alibi_tensor(self.num_heads, self.max_seq_len)
        given = create_causal_mask(inputs_embeds, cache, None, attention_mask, attention="eager")
        assert given is not None
        causal_mask = given.to(BOOL)
        if cache is None or not cache.dense_masks:  # else the mask is `generate`'s, which keeps it
            del given
        for block in self.blocks:
            outputs = block(hidden_states, alibi, causal_mask, cache)
            hidden_states = outputs[0]
        if cache is not None:
            cache.advance(input_ids.shape[1])
        hidden_states = self.norm_f(hidden_states)
        return hidden_states  # type: ignore[no-any-return]


class MptForCausalLM(CausalModel):
    takes_positions = False

    def __init__(self, config: MptConfig, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.cache_layers = config.n_layers
        self.transformer = MptModel(config, dtype)
        tied_to = self.transformer.wte if config.tie_word_embeddings else None
        self.lm_head = nn.Head(tied_to, config.d_model, config.vocab_size, dtype)

    def cache_layout(self) -> tuple[LayerCache, ...]:
        config = self.config
        return layout.full_attention(config.n_layers, config.n_heads, config.d_model // config.n_heads)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        cache: Cache | None = None,
        logits_to_keep: int = 0,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> CausalOutput:
        hidden_states = self.transformer(input_ids, cache, attention_mask)
        hidden_states = slice_logits_to_keep(hidden_states, logits_to_keep)
        logits = self.lm_head(hidden_states)
        loss = None
        if labels is not None:
            loss = causal_lm_loss(logits, labels, self.config.vocab_size)
        return CausalOutput(logits, loss, cache)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return MptForCausalLM(MptConfig.read(config, where), dtype)
