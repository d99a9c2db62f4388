"""OLMo, as `transformers/models/olmo/modeling_olmo.py` (5.23) writes it.

Llama with layer norms that have no weights, and positions turned in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dims import Size
from weigh.dtypes import FLOAT32, DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel, apply_rotary_pos_emb
from weigh.models.llama import DecoderConfig, LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from weigh.models.olmo2 import Olmo2RotaryEmbedding
from weigh.records import dataclass

MODEL_TYPES = ("olmo",)


@dataclass(frozen=True)
class OlmoConfig(DecoderConfig):
    """The settings of `OlmoConfig` that shape memory."""

    vocab_size: int = 50304
    attention_bias: bool = False
    clip_qkv: float | None = None


class OlmoLayerNorm(nn.Module):
    role = nn.NORM

    def __init__(self, hidden_size: Size, dtype: DType) -> None:
        super().__init__()

    def forward(self, hidden_states: Tensor) -> Tensor:
        orig_dtype = hidden_states.dtype
        return ops.layer_norm(hidden_states.to(FLOAT32), None, None).to(orig_dtype)


class OlmoAttention(LlamaAttention):
    def __init__(self, config: OlmoConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.clip_qkv = config.clip_qkv

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Clipped in place, if at all."""
        batch, length = hidden_states.shape[:-1]
        hidden_shape = (batch, length, -1, self.head_dim)
        query_states = self.q_proj(hidden_states)
        key_states = self.k_proj(hidden_states)
        value_states = self.v_proj(hidden_states)
        if self.clip_qkv is not None:
            query_states = ops.clamp_(query_states)
            key_states = ops.clamp_(key_states)
            value_states = ops.clamp_(value_states)
        query_states = query_states.view(*hidden_shape).transpose(1, 2)
        key_states = key_states.view(*hidden_shape).transpose(1, 2)
        value_states = value_states.view(*hidden_shape).transpose(1, 2)
        return query_states, key_states, value_states

    def rotate(self, query: Tensor, key: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """In fp32, and cast back."""
        cos, sin = position_embeddings
        q_embed, k_embed = apply_rotary_pos_emb(query, key, cos, sin)
        return q_embed.to(query.dtype), k_embed.to(key.dtype)


class OlmoDecoderLayer(LlamaDecoderLayer):
    attention_class = OlmoAttention
    norm_class = OlmoLayerNorm


class OlmoModel(LlamaModel):
    layer_class = OlmoDecoderLayer
    norm_class = OlmoLayerNorm

    def rotary(self, config: DecoderConfig) -> nn.Module:
        """In fp32."""
        return Olmo2RotaryEmbedding(config.head_dim)


class OlmoForCausalLM(LlamaForCausalLM):
    model_class = OlmoModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return OlmoForCausalLM(OlmoConfig.read(config, where), dtype)
