"""OLMo 2, as `transformers/models/olmo2/modeling_olmo2.py` (5.23) writes it.

Llama that norms after attention and MLP instead of before, and all queries and keys at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import FLOAT32, DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import Cache, CausalModel, RotaryEmbedding, apply_rotary_pos_emb, cos_sin
from weigh.models.llama import (
    DecoderConfig,
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaModel,
)
from weigh.records import dataclass

MODEL_TYPES = ("olmo2",)


@dataclass(frozen=True)
class Olmo2Config(DecoderConfig):
    """The settings of `Olmo2Config` that shape memory."""

    vocab_size: int = 50304
    attention_bias: bool = False


class Olmo2RMSNorm(nn.RMSNorm):
    """Scaled in fp32, then cast back."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(FLOAT32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * ops.rsqrt(variance + 1e-6)
        return (self.weight * hidden_states).to(input_dtype)


class Olmo2RotaryEmbedding(RotaryEmbedding):
    """Cosines and sines stay in fp32."""

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return cos_sin(positions, self.inv_freq, None)


class Olmo2Attention(LlamaAttention):
    norm_class: ClassVar[type[nn.RMSNorm]] = Olmo2RMSNorm

    def __init__(self, config: DecoderConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.q_norm = self.norm_class(self.num_heads * self.head_dim, dtype)
        self.k_norm = self.norm_class(self.num_kv_heads * self.head_dim, dtype)

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys are normed over all heads."""
        batch, length = hidden_states.shape[:-1]
        hidden_shape = (batch, length, -1, self.head_dim)
        query_states = self.q_norm(self.q_proj(hidden_states))
        key_states = self.k_norm(self.k_proj(hidden_states))
        value_states = self.v_proj(hidden_states)
        query_states = query_states.view(*hidden_shape).transpose(1, 2)
        key_states = key_states.view(*hidden_shape).transpose(1, 2)
        value_states = value_states.view(*hidden_shape).transpose(1, 2)
        return query_states, key_states, value_states

    def rotate(self, query: Tensor, key: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """In fp32, and cast back."""
        cos, sin = position_embeddings
        q_embed, k_embed = apply_rotary_pos_emb(query, key, cos, sin)
        return q_embed.to(query.dtype), k_embed.to(key.dtype)


class Olmo2DecoderLayer(LlamaDecoderLayer):
    attention_class: ClassVar[type[Any]] = Olmo2Attention
    norm_class: ClassVar[type[Any]] = Olmo2RMSNorm

    def __init__(self, config: DecoderConfig, dtype: DType, layer_idx: int) -> None:
        nn.Module.__init__(self)
        self.self_attn = self.attention_class(config, dtype, layer_idx)
        self.mlp = self.mlp_class(config, dtype)
        self.post_attention_layernorm = self.norm_class(config.hidden_size, dtype)
        self.post_feedforward_layernorm = self.norm_class(config.hidden_size, dtype)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        mask: Tensor | None,
        positions: Tensor,
        cache: Cache | None,
    ) -> Tensor:
        residual = hidden_states
        hidden_states, _ = self.self_attn(hidden_states, position_embeddings, mask, cache)
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = residual + hidden_states
        residual = hidden_states
        hidden_states = self.mlp(hidden_states)
        hidden_states = self.post_feedforward_layernorm(hidden_states)
        hidden_states = residual + hidden_states
        return hidden_states


class Olmo2Model(LlamaModel):
    layer_class = Olmo2DecoderLayer
    norm_class = Olmo2RMSNorm

    def rotary(self, config: DecoderConfig) -> nn.Module:
        """In fp32."""
        return Olmo2RotaryEmbedding(config.head_dim)


class Olmo2ForCausalLM(LlamaForCausalLM):
    model_class = Olmo2Model


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Olmo2ForCausalLM(Olmo2Config.read(config, where), dtype)
