"""Llama, as `transformers/models/llama/modeling_llama.py` (5.23) writes it.

Shapes: B batch, T length, D hidden size, N heads, K key-value heads, H head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.ghost.tensor import Tensor
from weigh.models.common import (
    Cache,
    CausalModel,
    CausalOutput,
    RotaryEmbedding,
    apply_rotary_pos_emb,
    attention_interface,
    causal_lm_loss,
    create_causal_mask,
    position_ids,
    slice_logits_to_keep,
)
from weigh.models.config import Keys

MODEL_TYPES = ("llama",)


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """The settings of `LlamaConfig` that shape memory."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 128
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    attention_dropout: float = 0.0

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> LlamaConfig:
        """From a `config.json`. Raises `InputError` for values that cannot be."""
        keys = Keys(config, where)
        width = keys.size("hidden_size", default=4096)
        heads = keys.size("num_attention_heads", default=32)
        kv_heads = keys.optional_size("num_key_value_heads") or heads
        keys.divides("num_key_value_heads", kv_heads, "num_attention_heads", heads)
        share = keys.divides("num_attention_heads", heads, "hidden_size", width)  # upstream asks it of every config
        head_dim = keys.optional_size("head_dim") or share
        activation = keys.word("hidden_act", default="silu")
        nn.activation(activation)
        return cls(
            vocab_size=keys.size("vocab_size", default=32000),
            hidden_size=width,
            intermediate_size=keys.size("intermediate_size", default=11008),
            num_hidden_layers=keys.size("num_hidden_layers", default=32),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            hidden_act=activation,
            tie_word_embeddings=keys.flag("tie_word_embeddings", default=False),
            attention_bias=keys.flag("attention_bias", default=False),
            mlp_bias=keys.flag("mlp_bias", default=False),
            attention_dropout=keys.fraction("attention_dropout", default=0.0),
        )


class LlamaMLP(nn.Module):
    role = nn.MLP

    def __init__(self, config: LlamaConfig, dtype: DType) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(width, inner, dtype, bias)
        self.up_proj = nn.Linear(width, inner, dtype, bias)
        self.down_proj = nn.Linear(inner, width, dtype, bias)
        self.act_fn = nn.Activation(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        down_proj: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return down_proj


class LlamaAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: LlamaConfig, dtype: DType) -> None:
        super().__init__()
        width, bias = config.hidden_size, config.attention_bias
        self.num_heads, self.num_kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.num_key_value_groups = self.num_heads // self.num_kv_heads
        self.attention_dropout = config.attention_dropout
        self.q_proj = nn.Linear(width, self.num_heads * self.head_dim, dtype, bias)
        self.k_proj = nn.Linear(width, self.num_kv_heads * self.head_dim, dtype, bias)
        self.v_proj = nn.Linear(width, self.num_kv_heads * self.head_dim, dtype, bias)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, width, dtype, bias)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: Cache | None,
    ) -> tuple[Tensor, Tensor | None]:
        batch, length = hidden_states.shape[:-1]
        query_states = self.q_proj(hidden_states).view(batch, length, self.num_heads, self.head_dim).transpose(1, 2)
        key_states = self.k_proj(hidden_states).view(batch, length, self.num_kv_heads, self.head_dim).transpose(1, 2)
        value_states = self.v_proj(hidden_states).view(batch, length, self.num_kv_heads, self.head_dim).transpose(1, 2)
        cos, sin = position_embeddings
        query_states, key_states = apply_rotary_pos_emb(query_states, key_states, cos, sin)
        if cache is not None:
            key_states, value_states = cache.update(key_states, value_states, self.path)
        dropout = self.attention_dropout if self.training else 0.0
        attention = attention_interface()
        groups = self.num_key_value_groups
        attn_output, attn_weights = attention(query_states, key_states, value_states, mask, dropout, groups)
        attn_output = attn_output.reshape(batch, length, self.num_heads * self.head_dim).contiguous()
        attn_output = self.o_proj(attn_output)
        return attn_output, attn_weights


class LlamaDecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: LlamaConfig, dtype: DType) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(config, dtype)
        self.mlp = LlamaMLP(config, dtype)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, dtype)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, dtype)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        mask: Tensor | None,
        positions: Tensor,
        cache: Cache | None,
    ) -> Tensor:
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states, position_embeddings, mask, cache)
        hidden_states = residual + hidden_states
        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = residual + hidden_states
        return hidden_states


class LlamaModel(nn.Module):
    def __init__(self, config: LlamaConfig, dtype: DType) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, dtype)
        self.layers = nn.Stack("model.layers", config.num_hidden_layers, lambda _: LlamaDecoderLayer(config, dtype))
        self.norm = nn.RMSNorm(config.hidden_size, dtype)
        self.rotary_emb = RotaryEmbedding(config.head_dim)

    def forward(
        self,
        input_ids: Tensor,
        cache: Cache | None,
        attention_mask: Tensor | None,
        positions: Tensor | None,
    ) -> Tensor:
        inputs_embeds = self.embed_tokens(input_ids)
        if positions is None:
            positions = position_ids(input_ids.shape[1], cache)
        causal_mask = create_causal_mask(inputs_embeds, cache, positions, attention_mask)
        hidden_states = inputs_embeds
        position_embeddings = self.rotary_emb(hidden_states, positions)
        for decoder_layer in self.layers:
            hidden_states = decoder_layer(hidden_states, position_embeddings, causal_mask, positions, cache)
        if cache is not None:
            cache.advance(input_ids.shape[1])
        hidden_states = self.norm(hidden_states)
        return hidden_states  # type: ignore[no-any-return]


class LlamaForCausalLM(CausalModel):
    def __init__(self, config: LlamaConfig, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.cache_layers = config.num_hidden_layers
        self.model = LlamaModel(config, dtype)
        self.lm_head = nn.Head(
            self.model.embed_tokens if config.tie_word_embeddings else None,
            config.hidden_size,
            config.vocab_size,
            dtype,
        )

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        cache: Cache | None = None,
        logits_to_keep: int = 0,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> CausalOutput:
        hidden_states = self.model(input_ids, cache, attention_mask, positions)
        hidden_states = slice_logits_to_keep(hidden_states, logits_to_keep)
        logits = self.lm_head(hidden_states)
        loss = None
        if labels is not None:
            loss = causal_lm_loss(logits, labels, self.config.vocab_size)
        return CausalOutput(logits, loss, cache)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return LlamaForCausalLM(LlamaConfig.read(config, where), dtype)
