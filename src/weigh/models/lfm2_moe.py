"""LFM2-MoE, as `transformers/models/lfm2_moe/modeling_lfm2_moe.py` (5.23) writes it.

LFM2 with experts in all but the first layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weigh.dtypes import FLOAT32, DType
from weigh.errors import InputError
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel
from weigh.models.config import Count, Keys
from weigh.models.experts import Experts
from weigh.models.lfm2 import Lfm2DecoderLayer, Lfm2ForCausalLM, Lfm2MLP, Lfm2Model, ShortConvConfig
from weigh.records import dataclass

MODEL_TYPES = ("lfm2_moe",)


@dataclass(frozen=True)
class Lfm2MoeConfig(ShortConvConfig):
    """The settings of `Lfm2MoeConfig` that shape memory."""

    hidden_size: int = 2048
    intermediate_size: int = 7168
    moe_intermediate_size: int = 1792
    num_dense_layers: Count = 2
    num_experts_per_tok: int = 4
    num_experts: int = 32
    use_expert_bias: bool = True
    norm_topk_prob: bool = True

    @property
    def layer_pattern(self) -> Sequence[object]:
        """Convolutions, and experts."""
        return [(name, i < self.num_dense_layers) for i, name in enumerate(self.layer_types)]

    @property
    def leading_layers(self) -> int:
        """The dense ones."""
        return self.num_dense_layers

    @classmethod
    def default_type(cls, keys: Keys, found: dict[str, Any], layer_idx: int) -> str:
        raise InputError("is missing", where=f"{keys.where}: layer_types", hint="Give one for each layer.")


class Lfm2MoeTopKRouter(nn.Module):
    def __init__(self, config: Lfm2MoeConfig, dtype: DType) -> None:
        super().__init__()
        self.top_k, self.norm_topk_prob = config.num_experts_per_tok, config.norm_topk_prob
        self.weight = nn.parameter((config.num_experts, config.hidden_size), dtype)

    def forward(self, hidden_states: Tensor, expert_bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        router_logits = ops.linear(hidden_states, self.weight)
        routing_weights = ops.sigmoid(router_logits)
        if expert_bias is not None:
            scores_for_routing = routing_weights + expert_bias
            _, selected_experts = ops.topk(scores_for_routing, self.top_k)
            routing_weights = ops.gather(routing_weights, selected_experts, selected_experts.shape)
            routing_weights = routing_weights.to(router_logits.dtype)
        else:
            routing_weights, selected_experts = ops.topk(routing_weights, self.top_k)
        if self.norm_topk_prob:
            routing_weights = routing_weights / (ops.sum(routing_weights, (-1,), keepdim=True) + 1e-6)
        routing_weights = routing_weights * 1.0
        return router_logits, routing_weights, selected_experts


class Lfm2MoeSparseMoeBlock(nn.Module):
    role = nn.MLP

    def __init__(self, config: Lfm2MoeConfig, dtype: DType) -> None:
        super().__init__()
        width, inner, active = config.hidden_size, config.moe_intermediate_size, config.num_experts_per_tok
        self.experts = Experts(config.num_experts, active, width, inner, "silu", dtype)
        self.gate = Lfm2MoeTopKRouter(config, dtype)
        self.expert_bias = nn.buffer((config.num_experts,), FLOAT32) if config.use_expert_bias else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        batch_size, sequence_length, hidden_dim = hidden_states.shape
        hidden_states_reshaped = hidden_states.view(-1, hidden_dim)
        _, routing_weights, selected_experts = self.gate(hidden_states_reshaped, self.expert_bias)
        final_hidden_states = self.experts(hidden_states_reshaped, selected_experts, routing_weights)
        return final_hidden_states.reshape(batch_size, sequence_length, hidden_dim)  # type: ignore[no-any-return]


class Lfm2MoeDecoderLayer(Lfm2DecoderLayer):
    def add_feed_forward(self, config: Any, dtype: DType, layer_idx: int) -> None:
        """An MLP in the first layers, then experts."""
        if layer_idx < config.num_dense_layers:
            self.feed_forward = Lfm2MLP(config.hidden_size, config.intermediate_size, dtype)
        else:
            self.feed_forward = Lfm2MoeSparseMoeBlock(config, dtype)


class Lfm2MoeModel(Lfm2Model):
    layer_class = Lfm2MoeDecoderLayer

    def __init__(self, config: Any, dtype: DType) -> None:
        super().__init__(config, dtype)
        self.pos_emb = self.__dict__.pop("rotary_emb")  # upstream's name here

    def position_embeddings(self, hidden_states: Tensor, positions: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        return dict.fromkeys(self.config.layer_types, self.pos_emb(hidden_states, positions))


class Lfm2MoeForCausalLM(Lfm2ForCausalLM):
    model_class = Lfm2MoeModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Lfm2MoeForCausalLM(Lfm2MoeConfig.read(config, where), dtype)
