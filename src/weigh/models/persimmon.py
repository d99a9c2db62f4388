"""Persimmon, as `transformers/models/persimmon/modeling_persimmon.py` (5.23) writes it.

Llama with layer norms, biases, one projection for queries, keys and values, and half of each head rotated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import Cache, CausalModel, RotaryEmbedding, apply_rotary_pos_emb, attention_interface
from weigh.models.config import DERIVED, Keys, Probability
from weigh.models.gpt_neox import GPTNeoXMLP
from weigh.models.llama import DecoderConfig, LlamaForCausalLM, LlamaModel
from weigh.models.phi3 import cut
from weigh.records import dataclass

MODEL_TYPES = ("persimmon",)


@dataclass(frozen=True)
class PersimmonConfig(DecoderConfig):
    """The settings of `PersimmonConfig` that shape memory."""

    vocab_size: int = 262144
    intermediate_size: int = 16384
    num_hidden_layers: int = 36
    num_attention_heads: int = 64
    hidden_act: str = "relu2"
    qk_layernorm: bool = True
    hidden_dropout: Probability = 0.0
    rotary_ndims: int = DERIVED

    heads_divide_width = True

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """The heads share the width, every one with its own key; half of each is turned."""
        found["head_dim"] = found["num_key_value_heads"] = None
        super().settle(keys, found)
        found["rotary_ndims"] = keys.rotary_width(found["head_dim"], default=0.5)


class PersimmonAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: PersimmonConfig, dtype: DType) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.rotary_ndims = config.rotary_ndims
        self.query_key_value = nn.Linear(width, 3 * width, dtype, bias=True)
        self.dense = nn.Linear(width, width, dtype, bias=True)
        self.qk_layernorm = config.qk_layernorm
        if self.qk_layernorm:
            self.q_layernorm = nn.LayerNorm(self.head_dim, dtype)
            self.k_layernorm = nn.LayerNorm(self.head_dim, dtype)
        self.attention_dropout = config.attention_dropout

    def _split_heads(self, fused_qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch_size, seq_length, _ = fused_qkv.shape
        fused_qkv = fused_qkv.view(batch_size, seq_length, self.num_heads, 3, self.head_dim)
        return ops.select(fused_qkv, 3), ops.select(fused_qkv, 3), ops.select(fused_qkv, 3)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: Cache | None,
    ) -> tuple[Tensor, Tensor | None]:
        bsz, q_len, width = hidden_states.shape
        fused_qkv = self.query_key_value(hidden_states)
        query_states, key_states, value_states = self._split_heads(fused_qkv)
        if self.qk_layernorm:
            query_states = self.q_layernorm(query_states)
            key_states = self.k_layernorm(key_states)
        query_states = query_states.transpose(1, 2)
        value_states = value_states.transpose(1, 2)
        key_states = key_states.transpose(1, 2)
        cos, sin = position_embeddings
        query_rot, query_pass = cut(query_states, self.rotary_ndims)
        key_rot, key_pass = cut(key_states, self.rotary_ndims)
        query_rot, key_rot = apply_rotary_pos_emb(query_rot, key_rot, cos, sin)
        query_states = ops.cat([query_rot, query_pass], -1)
        key_states = ops.cat([key_rot, key_pass], -1)
        if cache is not None:
            key_states, value_states = cache.update(key_states, value_states, self.path)
        dropout = self.attention_dropout if self.training else 0.0
        attention = attention_interface()
        attn_output, attn_weights = attention(query_states, key_states, value_states, mask, dropout, 1)
        attn_output = attn_output.reshape(bsz, q_len, width)
        attn_output = self.dense(attn_output)
        return attn_output, attn_weights


class PersimmonDecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: Any, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = PersimmonAttention(config, dtype)
        self.mlp = GPTNeoXMLP(config, dtype)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, dtype)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, dtype)
        self.dropout = nn.Dropout(config.hidden_dropout)

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
        hidden_states = self.dropout(hidden_states)
        hidden_states = hidden_states + residual
        return hidden_states


class PersimmonModel(LlamaModel):
    layer_class = PersimmonDecoderLayer
    norm_class = nn.LayerNorm
    norm_name = "final_layernorm"

    def rotary(self, config: Any) -> nn.Module:
        """Of a part of the width."""
        return RotaryEmbedding(config.rotary_ndims)


class PersimmonForCausalLM(LlamaForCausalLM):
    model_class = PersimmonModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return PersimmonForCausalLM(PersimmonConfig.read(config, where), dtype)
