"""A.X K1, as `transformers/models/axk1/modeling_axk1.py` (5.23) writes it.

DeepSeek-V3 that norms what the experts return.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel
from weigh.models.config import DERIVED, Count, Keys
from weigh.models.deepseek_v3 import (
    DeepseekV3DecoderLayer,
    DeepseekV3ForCausalLM,
    DeepseekV3Model,
    DeepseekV3MoE,
    LatentConfig,
)
from weigh.models.sparse import DENSE, SPARSE
from weigh.records import dataclass

MODEL_TYPES = ("axk1",)


@dataclass(frozen=True)
class AXK1Config(LatentConfig):
    """The settings of `AXK1Config` that shape memory."""

    vocab_size: int = 163840
    num_attention_heads: int = 64
    num_key_value_heads: int = DERIVED
    n_routed_experts: int = 192
    q_lora_rank: int = 1536
    first_k_dense_replace: Count = 1
    moe_layer_freq: int = 1
    mlp_layer_types: tuple[str, ...] = DERIVED

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """The first layer is dense, and of the others every n-th has experts."""
        if found["mlp_layer_types"] is None:
            dense, every = found["first_k_dense_replace"], found["moe_layer_freq"]
            layers = range(found["num_hidden_layers"])
            found["mlp_layer_types"] = tuple(SPARSE if i >= dense and i % every == 0 else DENSE for i in layers)
        super().settle(keys, found)


class AXK1MoE(DeepseekV3MoE):
    def __init__(self, config: AXK1Config, dtype: DType) -> None:
        super().__init__(config, dtype)
        self.post_mlp_layernorm = nn.RMSNorm(config.hidden_size, dtype)

    def forward(self, hidden_states: Tensor) -> Tensor:
        residuals = hidden_states
        orig_shape = hidden_states.shape
        _, topk_weights, topk_indices = self.gate(hidden_states)
        hidden_states = hidden_states.view(-1, hidden_states.shape[-1])
        hidden_states = self.experts(hidden_states, topk_indices, topk_weights).view(*orig_shape)
        hidden_states = hidden_states + self.shared_experts(residuals)
        return self.post_mlp_layernorm(hidden_states)  # type: ignore[no-any-return]


class AXK1DecoderLayer(DeepseekV3DecoderLayer):
    moe_class = AXK1MoE


class AXK1Model(DeepseekV3Model):
    layer_class = AXK1DecoderLayer


class AXK1ForCausalLM(DeepseekV3ForCausalLM):
    model_class = AXK1Model


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return AXK1ForCausalLM(AXK1Config.read(config, where), dtype)
