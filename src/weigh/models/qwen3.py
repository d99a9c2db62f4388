"""Qwen3, as `transformers/models/qwen3/modeling_qwen3.py` (5.23) writes it: Qwen2 that norms every query and key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel
from weigh.models.llama import DecoderConfig, LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM
from weigh.models.qwen2 import Qwen2Config, Qwen2Model
from weigh.records import dataclass

MODEL_TYPES = ("qwen3",)


@dataclass(frozen=True)
class Qwen3Config(Qwen2Config):
    """The settings of `Qwen3Config` that shape memory."""

    head_dim: int = 128
    attention_bias: bool = False


class Qwen3Attention(LlamaAttention):
    def __init__(self, config: DecoderConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.q_norm = nn.RMSNorm(self.head_dim, dtype)
        self.k_norm = nn.RMSNorm(self.head_dim, dtype)

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys are normed head by head."""
        batch, length = hidden_states.shape[:-1]
        hidden_shape = (batch, length, -1, self.head_dim)
        query_states = self.q_norm(self.q_proj(hidden_states).view(*hidden_shape)).transpose(1, 2)
        key_states = self.k_norm(self.k_proj(hidden_states).view(*hidden_shape)).transpose(1, 2)
        value_states = self.v_proj(hidden_states).view(*hidden_shape).transpose(1, 2)
        return query_states, key_states, value_states


class Qwen3DecoderLayer(LlamaDecoderLayer):
    attention_class = Qwen3Attention


class Qwen3Model(Qwen2Model):
    layer_class = Qwen3DecoderLayer


class Qwen3ForCausalLM(LlamaForCausalLM):
    model_class = Qwen3Model


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Qwen3ForCausalLM(Qwen3Config.read(config, where), dtype)
