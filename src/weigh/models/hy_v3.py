"""Hunyuan 3, as `transformers/models/hy_v3/modeling_hy_v3.py` (5.23) writes it.

Qwen3's attention, and experts chosen by sigmoids with a bias, added to the shared one in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel
from weigh.models.config import DERIVED, Keys
from weigh.models.deepseek_v3 import DeepseekV3DecoderLayer
from weigh.models.experts import Experts, GatedMLP
from weigh.models.llama import LlamaForCausalLM, LlamaModel
from weigh.models.qwen3 import Qwen3Attention
from weigh.models.sparse import MoeConfig, first_dense
from weigh.records import dataclass

MODEL_TYPES = ("hy_v3",)


@dataclass(frozen=True)
class HYV3Config(MoeConfig):
    """The settings of `HYV3Config` that shape memory."""

    vocab_size: int = 120832
    intermediate_size: int = 13312
    num_hidden_layers: int = 80
    num_attention_heads: int = 64
    num_key_value_heads: int = 8
    head_dim: int = 128
    attention_bias: bool = False
    mlp_bias: bool = False
    num_experts: int = 192
    num_experts_per_tok: int = 8
    num_shared_experts: int = 1
    moe_intermediate_size: int = 1536
    enable_moe_fp32_combine: bool = True
    mlp_layer_types: tuple[str, ...] = DERIVED

    aliases: ClassVar[Mapping[str, str]] = {"num_local_experts": "num_experts"}

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """The first layer is dense."""
        if found["mlp_layer_types"] is None:
            found["mlp_layer_types"] = first_dense(found["num_hidden_layers"], 1)
        super().settle(keys, found)


class HYV3TopKRouter(nn.Module):
    def __init__(self, config: HYV3Config, dtype: DType) -> None:
        super().__init__()
        self.top_k, self.hidden_dim = config.num_experts_per_tok, config.hidden_size
        self.weight = nn.parameter((config.num_experts, config.hidden_size), dtype)

    def forward(self, hidden_states: Tensor, e_score_correction_bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden_states = hidden_states.reshape(-1, self.hidden_dim)
        router_logits = ops.linear(hidden_states.float(), self.weight.float())
        routing_weights = ops.sigmoid(router_logits)
        scores_for_choice = routing_weights + e_score_correction_bias
        _, top_k_index = ops.topk(scores_for_choice, self.top_k)
        top_k_weights = ops.gather(routing_weights, top_k_index, top_k_index.shape)
        top_k_weights = top_k_weights / (ops.sum(top_k_weights, (-1,), keepdim=True) + 1e-20)
        top_k_weights = top_k_weights * 2.826
        return router_logits, top_k_weights, top_k_index


class HYV3MoE(nn.Module):
    role = nn.MLP

    def __init__(self, config: HYV3Config, dtype: DType) -> None:
        super().__init__()
        experts, width, inner = config.num_experts, config.hidden_size, config.moe_intermediate_size
        self.gate = HYV3TopKRouter(config, dtype)
        self.experts = Experts(experts, config.num_experts_per_tok, width, inner, config.hidden_act, dtype)
        self.e_score_correction_bias = nn.buffer((experts,), dtype)
        self.enable_moe_fp32_combine = config.enable_moe_fp32_combine
        shared = inner * config.num_shared_experts
        self.shared_experts = GatedMLP(width, shared, config.hidden_act, dtype, config.mlp_bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        batch_size, seq_len, hidden_dim = hidden_states.shape
        hidden_states = hidden_states.view(-1, hidden_dim)
        _, top_k_weights, top_k_index = self.gate(hidden_states, self.e_score_correction_bias)
        routed_output = self.experts(hidden_states, top_k_index, top_k_weights)
        if self.enable_moe_fp32_combine:
            combined = routed_output.float() + self.shared_experts(hidden_states).float()
            hidden_states = combined.to(hidden_states.dtype)
            del combined
        else:
            hidden_states = routed_output + self.shared_experts(hidden_states)
        return hidden_states.reshape(batch_size, seq_len, hidden_dim)


class HYV3DecoderLayer(DeepseekV3DecoderLayer):
    attention_class: ClassVar[type[Any]] = Qwen3Attention
    moe_class: ClassVar[type[Any]] = HYV3MoE


class HYV3Model(LlamaModel):
    layer_class: ClassVar[type[Any]] = HYV3DecoderLayer


class HYV3ForCausalLM(LlamaForCausalLM):
    model_class = HYV3Model


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return HYV3ForCausalLM(HYV3Config.read(config, where), dtype)
