"""OLMoE, as `transformers/models/olmoe/modeling_olmoe.py` (5.23) writes it.

Llama that norms all queries and keys at once, with a mixture of experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel
from weigh.models.experts import Experts
from weigh.models.llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from weigh.models.qwen2_moe import Qwen2MoeTopKRouter
from weigh.models.sparse import MoeConfig
from weigh.records import dataclass

MODEL_TYPES = ("olmoe",)


@dataclass(frozen=True)
class OlmoeConfig(MoeConfig):
    """The settings of `OlmoeConfig` that shape memory."""

    vocab_size: int = 50304
    hidden_size: int = 2048
    intermediate_size: int = 2048
    num_hidden_layers: int = 16
    num_attention_heads: int = 16
    attention_bias: bool = False
    clip_qkv: float | None = None
    num_experts_per_tok: int = 8
    num_experts: int = 64
    norm_topk_prob: bool = False

    aliases: ClassVar[Mapping[str, str]] = {"num_local_experts": "num_experts"}


class OlmoeAttention(LlamaAttention):
    def __init__(self, config: OlmoeConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.clip_qkv = config.clip_qkv
        self.q_norm = nn.RMSNorm(config.hidden_size, dtype)
        width = config.hidden_size // config.num_attention_heads
        self.k_norm = nn.RMSNorm(width * config.num_key_value_heads, dtype)

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normed over all heads, and clipped in place, if at all."""
        batch, length = hidden_states.shape[:-1]
        hidden_shape = (batch, length, -1, self.head_dim)
        query_states = self.q_norm(self.q_proj(hidden_states))
        key_states = self.k_norm(self.k_proj(hidden_states))
        value_states = self.v_proj(hidden_states)
        if self.clip_qkv is not None:
            query_states = ops.clamp_(query_states)
            key_states = ops.clamp_(key_states)
            value_states = ops.clamp_(value_states)
        query_states = query_states.view(*hidden_shape).transpose(1, 2)
        key_states = key_states.view(*hidden_shape).transpose(1, 2)
        value_states = value_states.view(*hidden_shape).transpose(1, 2)
        return query_states, key_states, value_states


class OlmoeSparseMoeBlock(nn.Module):
    role = nn.MLP

    def __init__(self, config: OlmoeConfig, dtype: DType) -> None:
        super().__init__()
        self.gate = Qwen2MoeTopKRouter(config, dtype)
        width, inner = config.hidden_size, config.intermediate_size
        self.experts = Experts(config.num_experts, config.num_experts_per_tok, width, inner, config.hidden_act, dtype)

    def forward(self, hidden_states: Tensor) -> Tensor:
        batch_size, sequence_length, hidden_dim = hidden_states.shape
        hidden_states = hidden_states.view(-1, hidden_dim)
        _, top_k_weights, top_k_index = self.gate(hidden_states)
        final_hidden_states = self.experts(hidden_states, top_k_index, top_k_weights).reshape(
            batch_size, sequence_length, hidden_dim
        )
        return final_hidden_states  # type: ignore[no-any-return]


class OlmoeDecoderLayer(LlamaDecoderLayer):
    attention_class: ClassVar[type[Any]] = OlmoeAttention
    mlp_class: ClassVar[type[Any]] = OlmoeSparseMoeBlock


class OlmoeModel(LlamaModel):
    layer_class = OlmoeDecoderLayer


class OlmoeForCausalLM(LlamaForCausalLM):
    model_class = OlmoeModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return OlmoeForCausalLM(OlmoeConfig.read(config, where), dtype)
