"""Phi-1, 1.5 and 2, as `transformers/models/phi/modeling_phi.py` (5.23) writes it.

Shapes: B batch, T length, D hidden size, N heads, K key-value heads, H head width, R rotated width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models import layout
from weigh.models.common import (
    Cache,
    CausalModel,
    CausalOutput,
    LayerCache,
    RotaryEmbedding,
    apply_rotary_pos_emb,
    attention_interface,
    causal_lm_loss,
    create_causal_mask,
    position_ids,
    slice_logits_to_keep,
)
from weigh.models.config import Keys
from weigh.records import dataclass

MODEL_TYPES = ("phi",)


@dataclass(frozen=True, slots=True)
class PhiConfig:
    """The settings of `PhiConfig` that shape memory."""

    vocab_size: int = 51200
    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 64
    rotary_width: int = 32
    resid_pdrop: float = 0.0
    embd_pdrop: float = 0.0
    attention_dropout: float = 0.0
    hidden_act: str = "gelu_new"
    tie_word_embeddings: bool = False
    qk_layernorm: bool = False

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> PhiConfig:
        """From a `config.json`. Raises `InputError` for values that cannot be."""
        keys = Keys(config, where)
        width, heads = keys.size("hidden_size", default=2048), keys.size("num_attention_heads", default=32)
        kv_heads = keys.optional_size("num_key_value_heads") or heads
        keys.divides("num_key_value_heads", kv_heads, "num_attention_heads", heads)
        head_dim = keys.optional_size("head_dim") or keys.divides("num_attention_heads", heads, "hidden_size", width)
        activation = keys.word("hidden_act", default="gelu_new")
        nn.activation(activation)
        return cls(
            vocab_size=keys.size("vocab_size", default=51200),
            hidden_size=width,
            intermediate_size=keys.size("intermediate_size", default=8192),
            num_hidden_layers=keys.size("num_hidden_layers", default=24),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            rotary_width=keys.rotary_width(head_dim, default=0.5),
            resid_pdrop=keys.fraction("resid_pdrop", default=0.0),
            embd_pdrop=keys.fraction("embd_pdrop", default=0.0),
            attention_dropout=keys.fraction("attention_dropout", default=0.0),
            hidden_act=activation,
            tie_word_embeddings=keys.flag("tie_word_embeddings", default=False),
            qk_layernorm=keys.flag("qk_layernorm", default=False),
        )


class PhiAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: PhiConfig, dtype: DType) -> None:
        super().__init__()
        width, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.num_key_value_groups = heads // kv_heads
        self.attention_dropout = config.attention_dropout
        self.q_proj = nn.Linear(width, heads * self.head_dim, dtype, bias=True)
        self.k_proj = nn.Linear(width, kv_heads * self.head_dim, dtype, bias=True)
        self.v_proj = nn.Linear(width, kv_heads * self.head_dim, dtype, bias=True)
        self.dense = nn.Linear(heads * self.head_dim, width, dtype, bias=True)
        self.rotary_ndims = config.rotary_width
        self.qk_layernorm = config.qk_layernorm
        if self.qk_layernorm:
            self.q_layernorm = nn.LayerNorm(width // heads, dtype)
            self.k_layernorm = nn.LayerNorm(width // heads, dtype)

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None,
        cache: Cache | None,
        position_embeddings: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor | None]:
        batch, length = hidden_states.shape[:-1]
        query_states = self.q_proj(hidden_states).view(batch, length, -1, self.head_dim).transpose(1, 2)
        key_states = self.k_proj(hidden_states).view(batch, length, -1, self.head_dim).transpose(1, 2)
        value_states = self.v_proj(hidden_states).view(batch, length, -1, self.head_dim).transpose(1, 2)
        if self.qk_layernorm:
            query_states = self.q_layernorm(query_states)
            key_states = self.k_layernorm(key_states)
        cos, sin = position_embeddings
        query_rot, query_pass = self._parts(query_states)
        key_rot, key_pass = self._parts(key_states)
        query_rot, key_rot = apply_rotary_pos_emb(query_rot, key_rot, cos, sin)
        query_states = ops.cat([query_rot, query_pass], -1)
        key_states = ops.cat([key_rot, key_pass], -1)
        if cache is not None:
            key_states, value_states = cache.update(key_states, value_states, self.path)
        dropout = self.attention_dropout if self.training else 0.0
        attention, groups = attention_interface(), self.num_key_value_groups
        attn_output, attn_weights = attention(query_states, key_states, value_states, mask, dropout, groups)
        attn_output = attn_output.reshape(batch, length, -1).contiguous()
        attn_output = self.dense(attn_output)
        return attn_output, attn_weights

    def _parts(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """What is rotated, and what is not."""
        rest = self.head_dim - self.rotary_ndims
        return states.narrow(-1, self.rotary_ndims) if rest else states, states.narrow(-1, rest, self.rotary_ndims)


class PhiMLP(nn.Module):
    role = nn.MLP

    def __init__(self, config: PhiConfig, dtype: DType) -> None:
        super().__init__()
        self.activation_fn = nn.Activation(config.hidden_act)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size, dtype, bias=True)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, dtype, bias=True)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.fc1(hidden_states)
        hidden_states = self.activation_fn(hidden_states)
        hidden_states = self.fc2(hidden_states)
        return hidden_states


class PhiDecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: PhiConfig, dtype: DType) -> None:
        super().__init__()
        self.self_attn = PhiAttention(config, dtype)
        self.mlp = PhiMLP(config, dtype)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, dtype)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None,
        positions: Tensor,
        cache: Cache | None,
        position_embeddings: tuple[Tensor, Tensor],
    ) -> Tensor:
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        attn_outputs, _ = self.self_attn(hidden_states, mask, cache, position_embeddings)
        attn_outputs = self.resid_dropout(attn_outputs)
        feed_forward_hidden_states = self.resid_dropout(self.mlp(hidden_states))
        hidden_states = attn_outputs + feed_forward_hidden_states + residual
        return hidden_states


class PhiModel(nn.Module):
    def __init__(self, config: PhiConfig, dtype: DType) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, dtype)
        self.layers = nn.Stack("model.layers", config.num_hidden_layers, lambda _: PhiDecoderLayer(config, dtype))
        self.rotary_emb = RotaryEmbedding(config.rotary_width)
        self.embed_dropout = nn.Dropout(config.embd_pdrop)
        self.final_layernorm = nn.LayerNorm(config.hidden_size, dtype)

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
        inputs_embeds = self.embed_dropout(inputs_embeds)
        hidden_states = inputs_embeds
        position_embeddings = self.rotary_emb(hidden_states, positions)
        for decoder_layer in self.layers:
            hidden_states = decoder_layer(hidden_states, causal_mask, positions, cache, position_embeddings)
        if cache is not None:
            cache.advance(input_ids.shape[1])
        hidden_states = self.final_layernorm(hidden_states)
        return hidden_states  # type: ignore[no-any-return]


class PhiForCausalLM(CausalModel):
    def __init__(self, config: PhiConfig, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.cache_layers = config.num_hidden_layers
        self.model = PhiModel(config, dtype)
        tied_to = self.model.embed_tokens if config.tie_word_embeddings else None
        self.lm_head = nn.Head(tied_to, config.hidden_size, config.vocab_size, dtype, bias=True)

    def cache_layout(self) -> tuple[LayerCache, ...]:
        config = self.config
        return layout.full_attention(config.num_hidden_layers, config.num_key_value_heads, config.head_dim)

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
    return PhiForCausalLM(PhiConfig.read(config, where), dtype)
