"""GPT-NeoX (and Pythia), as `transformers/models/gpt_neox/modeling_gpt_neox.py` (5.23) writes it.

Shapes: B batch, T length, D hidden size, N heads, H head width, R rotated width, V vocabulary.
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
    attention_interface,
    causal_lm_loss,
    create_causal_mask,
    position_ids,
    rotate_half,
    slice_logits_to_keep,
)
from weigh.models.config import Keys
from weigh.records import dataclass

MODEL_TYPES = ("gpt_neox",)


@dataclass(frozen=True, slots=True)
class GPTNeoXConfig:
    """The settings of `GPTNeoXConfig` that shape memory."""

    vocab_size: int = 50432
    hidden_size: int = 6144
    num_hidden_layers: int = 44
    num_attention_heads: int = 64
    intermediate_size: int = 24576
    rotary_width: int = 24
    hidden_act: str = "gelu"
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    tie_word_embeddings: bool = False
    use_parallel_residual: bool = True
    attention_bias: bool = True

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> GPTNeoXConfig:
        """From a `config.json`. Raises `InputError` for values that cannot be."""
        keys = Keys(config, where)
        width, heads = keys.size("hidden_size", default=6144), keys.size("num_attention_heads", default=64)
        head_size = keys.divides("num_attention_heads", heads, "hidden_size", width)
        activation = keys.word("hidden_act", default="gelu")
        nn.activation(activation)
        return cls(
            vocab_size=keys.size("vocab_size", default=50432),
            hidden_size=width,
            num_hidden_layers=keys.size("num_hidden_layers", default=44),
            num_attention_heads=heads,
            intermediate_size=keys.size("intermediate_size", default=24576),
            rotary_width=keys.rotary_width(head_size, "rotary_pct", default=0.25),
            hidden_act=activation,
            attention_dropout=keys.fraction("attention_dropout", default=0.0),
            hidden_dropout=keys.fraction("hidden_dropout", default=0.0),
            tie_word_embeddings=keys.flag("tie_word_embeddings", default=False),
            use_parallel_residual=keys.flag("use_parallel_residual", default=True),
            attention_bias=keys.flag("attention_bias", default=True),
        )


class GPTNeoXMLP(nn.Module):
    role = nn.MLP

    def __init__(self, config: GPTNeoXConfig, dtype: DType) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.intermediate_size, dtype, bias=True)
        self.dense_4h_to_h = nn.Linear(config.intermediate_size, config.hidden_size, dtype, bias=True)
        self.act = nn.Activation(config.hidden_act)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.dense_h_to_4h(hidden_states)
        hidden_states = self.act(hidden_states)
        hidden_states = self.dense_4h_to_h(hidden_states)
        return hidden_states


def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary position embedding of the first dimensions of queries and keys."""
    cos = cos.unsqueeze(1)
    sin = sin.unsqueeze(1)
    rotary_dim = cos.shape[-1]
    rest = q.shape[-1] - rotary_dim
    q_rot, q_pass = q.narrow(-1, rotary_dim) if rest else q, q.narrow(-1, rest, rotary_dim)
    k_rot, k_pass = k.narrow(-1, rotary_dim) if rest else k, k.narrow(-1, rest, rotary_dim)
    q_embed = (q_rot * cos) + (rotate_half(q_rot) * sin)
    k_embed = (k_rot * cos) + (rotate_half(k_rot) * sin)
    q_embed = ops.cat([q_embed, q_pass], -1)
    k_embed = ops.cat([k_embed, k_pass], -1)
    return q_embed, k_embed


class GPTNeoXAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: GPTNeoXConfig, dtype: DType) -> None:
        super().__init__()
        width, bias = config.hidden_size, config.attention_bias
        self.head_size = width // config.num_attention_heads
        self.attention_dropout = config.attention_dropout
        self.query_key_value = nn.Linear(width, 3 * width, dtype, bias)
        self.dense = nn.Linear(width, width, dtype, bias)

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None,
        layer_past: Cache | None,
        position_embeddings: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor | None]:
        batch, length = hidden_states.shape[:-1]
        qkv = self.query_key_value(hidden_states).view(batch, length, -1, 3 * self.head_size).transpose(1, 2)
        query_states, key_states, value_states = qkv.split(self.head_size, dim=-1)
        cos, sin = position_embeddings
        query_states, key_states = apply_rotary_pos_emb(query_states, key_states, cos, sin)
        if layer_past is not None:
            key_states, value_states = layer_past.update(key_states, value_states, self.path)
        dropout = self.attention_dropout if self.training else 0.0
        attention = attention_interface()
        attn_output, attn_weights = attention(query_states, key_states, value_states, mask, dropout, 1)
        attn_output = attn_output.reshape(batch, length, -1).contiguous()
        attn_output = self.dense(attn_output)
        return attn_output, attn_weights


class GPTNeoXLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: GPTNeoXConfig, dtype: DType) -> None:
        super().__init__()
        self.use_parallel_residual = config.use_parallel_residual
        self.input_layernorm = nn.LayerNorm(config.hidden_size, dtype)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, dtype)
        self.post_attention_dropout = nn.Dropout(config.hidden_dropout)
        self.post_mlp_dropout = nn.Dropout(config.hidden_dropout)
        self.attention = GPTNeoXAttention(config, dtype)
        self.mlp = GPTNeoXMLP(config, dtype)

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None,
        positions: Tensor,
        layer_past: Cache | None,
        position_embeddings: tuple[Tensor, Tensor],
    ) -> Tensor:
        attn_output, _ = self.attention(self.input_layernorm(hidden_states), mask, layer_past, position_embeddings)
        attn_output = self.post_attention_dropout(attn_output)
        if self.use_parallel_residual:
            mlp_output = self.mlp(self.post_attention_layernorm(hidden_states))
            mlp_output = self.post_mlp_dropout(mlp_output)
            hidden_states = mlp_output + attn_output + hidden_states
        else:
            attn_output = attn_output + hidden_states
            mlp_output = self.mlp(self.post_attention_layernorm(attn_output))
            mlp_output = self.post_mlp_dropout(mlp_output)
            hidden_states = mlp_output + attn_output
        return hidden_states


class GPTNeoXModel(nn.Module):
    def __init__(self, config: GPTNeoXConfig, dtype: DType) -> None:
        super().__init__()
        self.embed_in = nn.Embedding(config.vocab_size, config.hidden_size, dtype)
        self.emb_dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.Stack("gpt_neox.layers", config.num_hidden_layers, lambda _: GPTNeoXLayer(config, dtype))
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, dtype)
        self.rotary_emb = RotaryEmbedding(config.rotary_width)

    def forward(
        self,
        input_ids: Tensor,
        cache: Cache | None,
        attention_mask: Tensor | None,
        positions: Tensor | None,
    ) -> Tensor:
        inputs_embeds = self.embed_in(input_ids)
        if positions is None:
            positions = position_ids(input_ids.shape[1], cache)
        causal_mask = create_causal_mask(inputs_embeds, cache, positions, attention_mask)
        hidden_states = self.emb_dropout(inputs_embeds)
        position_embeddings = self.rotary_emb(hidden_states, positions)
        for layer in self.layers:
            hidden_states = layer(hidden_states, causal_mask, positions, cache, position_embeddings)
        if cache is not None:
            cache.advance(input_ids.shape[1])
        hidden_states = self.final_layer_norm(hidden_states)
        return hidden_states  # type: ignore[no-any-return]


class GPTNeoXForCausalLM(CausalModel):
    def __init__(self, config: GPTNeoXConfig, dtype: DType) -> None:
        super().__init__()
        self.config = config
        self.cache_layers = config.num_hidden_layers
        self.gpt_neox = GPTNeoXModel(config, dtype)
        self.lm_head = nn.Head(
            self.gpt_neox.embed_in if config.tie_word_embeddings else None,
            config.hidden_size,
            config.vocab_size,
            dtype,
        )

    def cache_layout(self) -> tuple[LayerCache, ...]:
        config = self.config
        return layout.full_attention(
            config.num_hidden_layers, config.num_attention_heads, config.hidden_size // config.num_attention_heads
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
        hidden_states = self.gpt_neox(input_ids, cache, attention_mask, positions)
        hidden_states = slice_logits_to_keep(hidden_states, logits_to_keep)
        logits = self.lm_head(hidden_states)
        loss = None
        if labels is not None:
            loss = causal_lm_loss(logits, labels, self.config.vocab_size)
        return CausalOutput(logits, loss, cache)


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return GPTNeoXForCausalLM(GPTNeoXConfig.read(config, where), dtype)
