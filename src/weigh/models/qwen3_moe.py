"""Qwen3-MoE, as `transformers/models/qwen3_moe/modeling_qwen3_moe.py` (5.23) writes it.

Qwen3 with a mixture of experts in some layers or all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel
from weigh.models.config import Keys
from weigh.models.experts import Experts
from weigh.models.llama import LlamaForCausalLM, LlamaModel
from weigh.models.qwen2_moe import Qwen2MoeDecoderLayer, Qwen2MoeTopKRouter, SparseConfig
from weigh.models.qwen3 import Qwen3Attention
from weigh.records import dataclass

MODEL_TYPES = ("qwen3_moe",)


@dataclass(frozen=True)
class Qwen3MoeConfig(SparseConfig):
    """The settings of `Qwen3MoeConfig` that shape memory."""

    intermediate_size: int = 6144
    num_key_value_heads: int = 4
    moe_intermediate_size: int = 768
    num_experts_per_tok: int = 8
    num_experts: int = 128
    attention_bias: bool = False
    sliding_window: int | None = 4096

    aliases: ClassVar[Mapping[str, str]] = {"num_local_experts": "num_experts"}

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """A window only where it is switched on."""
        super().settle(keys, found)
        if not found["use_sliding_window"]:
            found["sliding_window"] = None


class Qwen3MoeSparseMoeBlock(nn.Module):
    role = nn.MLP

    def __init__(self, config: Any, dtype: DType) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.moe_intermediate_size
        self.experts = Experts(config.num_experts, config.num_experts_per_tok, width, inner, config.hidden_act, dtype)
        self.gate = Qwen2MoeTopKRouter(config, dtype)

    def forward(self, hidden_states: Tensor) -> Tensor:
        batch_size, sequence_length, hidden_dim = hidden_states.shape
        hidden_states_reshaped = hidden_states.view(-1, hidden_dim)
        _, routing_weights, selected_experts = self.gate(hidden_states_reshaped)
        final_hidden_states = self.experts(hidden_states_reshaped, selected_experts, routing_weights)
        return final_hidden_states.reshape(batch_size, sequence_length, hidden_dim)  # type: ignore[no-any-return]


class Qwen3MoeDecoderLayer(Qwen2MoeDecoderLayer):
    attention_class: ClassVar[type[Any]] = Qwen3Attention
    moe_class: ClassVar[type[Any]] = Qwen3MoeSparseMoeBlock


class Qwen3MoeModel(LlamaModel):
    layer_class: ClassVar[type[Any]] = Qwen3MoeDecoderLayer


class Qwen3MoeForCausalLM(LlamaForCausalLM):
    model_class = Qwen3MoeModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Qwen3MoeForCausalLM(Qwen3MoeConfig.read(config, where), dtype)
