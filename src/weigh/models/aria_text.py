"""The text model of Aria, as `transformers/models/aria/modeling_aria.py` (5.23) writes it.

Llama with a mixture of experts, whose weights are transposed, and experts for every token.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel
from weigh.models.experts import Experts, GatedMLP
from weigh.models.llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from weigh.models.sparse import MoeConfig
from weigh.records import dataclass

MODEL_TYPES = ("aria_text",)


@dataclass(frozen=True)
class AriaTextConfig(MoeConfig):
    """The settings of `AriaTextConfig` that shape memory."""

    intermediate_size: int = 4096
    attention_bias: bool = False
    mlp_bias: bool = False
    moe_num_experts: int = 8
    moe_topk: int = 2
    moe_num_shared_experts: int = 2

    heads_divide_width = True


class AriaExperts(Experts):
    """Transposed weights."""

    is_transposed = True

    def __init__(self, config: AriaTextConfig, dtype: DType) -> None:
        nn.Module.__init__(self)
        experts, width, inner = config.moe_num_experts, config.hidden_size, config.intermediate_size
        self.num_experts = experts
        self.active_share = Fraction(config.moe_topk, experts)
        self.gate_up_proj = nn.parameter((experts, width, 2 * inner), dtype)
        self.down_proj = nn.parameter((experts, inner, width), dtype)
        self.gate_up_proj_bias = self.down_proj_bias = None
        self.act_fn = nn.Activation("silu")


class AriaTextTopKRouter(nn.Module):
    def __init__(self, config: AriaTextConfig, dtype: DType) -> None:
        super().__init__()
        self.top_k = config.moe_topk
        self.weight = nn.parameter((config.moe_num_experts, config.hidden_size), dtype)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        router_logits = ops.linear(hidden_states, self.weight)
        top_k_logits, top_k_index = ops.topk(router_logits, self.top_k)
        top_k_weights = ops.softmax(top_k_logits)
        return router_logits, top_k_weights, top_k_index


class AriaTextMoELayer(nn.Module):
    role = nn.MLP

    def __init__(self, config: AriaTextConfig, dtype: DType) -> None:
        super().__init__()
        width, shared = config.hidden_size, config.intermediate_size * config.moe_num_shared_experts
        self.router = AriaTextTopKRouter(config, dtype)
        self.experts = AriaExperts(config, dtype)
        self.shared_experts = GatedMLP(width, shared, config.hidden_act, dtype, config.mlp_bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        original_shape = hidden_states.shape
        hidden_states = hidden_states.view(-1, hidden_states.shape[-1])
        _, top_k_weights, top_k_index = self.router(hidden_states)
        expert_output = self.experts(hidden_states, top_k_index, top_k_weights).view(*original_shape)
        shared_expert_output = self.shared_experts(hidden_states.view(*original_shape))
        return expert_output + shared_expert_output  # type: ignore[no-any-return]


class AriaTextDecoderLayer(LlamaDecoderLayer):
    mlp_class: ClassVar[type[Any]] = AriaTextMoELayer


class AriaTextModel(LlamaModel):
    layer_class = AriaTextDecoderLayer


class AriaTextForCausalLM(LlamaForCausalLM):
    model_class = AriaTextModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return AriaTextForCausalLM(AriaTextConfig.read(config, where), dtype)
