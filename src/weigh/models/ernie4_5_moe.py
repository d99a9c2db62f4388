"""ERNIE 4.5's mixture of experts, as `transformers/models/ernie4_5_moe/modeling_ernie4_5_moe.py` (5.23) writes it.

ERNIE 4.5 with experts in some layers, and routers in fp32 outside of autocast.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from weigh.dtypes import FLOAT32, DType
from weigh.ghost import nn, ops
from weigh.ghost.autocast import autocast
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel
from weigh.models.config import DERIVED, Count
from weigh.models.ernie4_5 import Ernie45Attention, Ernie45Config, Ernie45DecoderLayer, Ernie45Model
from weigh.models.experts import Experts, GatedMLP
from weigh.models.llama import LlamaForCausalLM, LlamaModel
from weigh.models.sparse import DENSE, SPARSE, MoeConfig
from weigh.records import dataclass

MODEL_TYPES = ("ernie4_5_moe",)


@dataclass(frozen=True)
class Ernie45MoeConfig(Ernie45Config, MoeConfig):
    """The settings of `Ernie4_5_MoeConfig` that shape memory."""

    hidden_size: int = 2560
    intermediate_size: int = 12288
    num_hidden_layers: int = 28
    num_attention_heads: int = 20
    num_key_value_heads: int = 4
    head_dim: int = DERIVED
    moe_intermediate_size: int = 1536
    moe_k: int = 6
    moe_num_experts: int = 64
    moe_num_shared_experts: Count = 2
    moe_layer_start_index: Count = 1
    moe_layer_end_index: int | None = None
    moe_layer_interval: int = 1

    aliases: ClassVar[Mapping[str, str]] = {"num_experts": "moe_num_experts", "num_experts_per_tok": "moe_k"}

    @property
    def head_bias(self) -> bool:
        """Of every projection, this one too."""
        return self.use_bias

    @property
    def mlp_layer_types(self) -> tuple[str, ...]:
        """Every n-th layer between the first and the last has experts."""
        first, every = self.moe_layer_start_index, self.moe_layer_interval
        last = self.num_hidden_layers - 1 if self.moe_layer_end_index is None else self.moe_layer_end_index
        layers = range(self.num_hidden_layers)
        return tuple(SPARSE if (i + 1) % every == 0 and first <= i <= last else DENSE for i in layers)

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> Self:
        """A last layer of -1 is the last."""
        if config.get("moe_layer_end_index") == -1:
            config = {**config, "moe_layer_end_index": None}
        return super().read(config, where)


class Ernie45MoeStatics(nn.Module):
    def __init__(self, config: Ernie45MoeConfig) -> None:
        super().__init__()
        self.e_score_correction_bias = nn.parameter((1, config.moe_num_experts), FLOAT32)
        self.e_score_correction_bias.requires_grad = False

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + self.e_score_correction_bias.squeeze(0)


class Ernie45MoeTopKRouter(nn.Module):
    def __init__(self, config: Ernie45MoeConfig) -> None:
        super().__init__()
        self.weight = nn.parameter((config.moe_num_experts, config.hidden_size), FLOAT32)
        self.moe_statics = Ernie45MoeStatics(config)
        self.top_k = config.moe_k

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with autocast(None):
            router_logits = ops.linear(hidden_states.float(), self.weight.float())
            routing_weights = ops.softmax(router_logits, FLOAT32)
            _, selected_experts = ops.topk(self.moe_statics(routing_weights), self.top_k)
            routing_weights = ops.gather(routing_weights, selected_experts, selected_experts.shape)
            total = ops.clamp_numbers(ops.sum(routing_weights, (-1,), keepdim=True), both=False)
            routing_weights = routing_weights / total
            del total
        routing_weights = routing_weights.to(hidden_states.dtype)
        return router_logits, routing_weights, selected_experts


class Ernie45MoeSparseMoeBlock(nn.Module):
    role = nn.MLP

    def __init__(self, config: Ernie45MoeConfig, dtype: DType) -> None:
        super().__init__()
        width, inner, act = config.hidden_size, config.moe_intermediate_size, config.hidden_act
        self.hidden_dim = width
        self.gate = Ernie45MoeTopKRouter(config)
        self.experts = Experts(config.moe_num_experts, config.moe_k, width, inner, act, dtype)
        shared = config.moe_num_shared_experts
        self.shared_experts = GatedMLP(width, inner * shared, act, dtype, config.use_bias) if shared else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        batch_size, sequence_length, _ = hidden_states.shape
        hidden_states = hidden_states.view(-1, self.hidden_dim)
        if self.shared_experts is not None:
            shared_output = self.shared_experts(hidden_states)
        _, top_k_weights, top_k_index = self.gate(hidden_states)
        final_hidden_states = self.experts(hidden_states, top_k_index, top_k_weights)
        if self.shared_experts is not None:
            final_hidden_states = final_hidden_states + shared_output
        final_hidden_states = final_hidden_states.reshape(batch_size, sequence_length, self.hidden_dim)
        return final_hidden_states.to(hidden_states.dtype)  # type: ignore[no-any-return]


class Ernie45MoeDecoderLayer(Ernie45DecoderLayer):
    def __init__(self, config: Any, dtype: DType, layer_idx: int) -> None:
        nn.Module.__init__(self)
        width, inner, act = config.hidden_size, config.intermediate_size, config.hidden_act
        self.self_attn = Ernie45Attention(config, dtype, layer_idx)
        if config.mlp_layer_types[layer_idx] == SPARSE:
            self.mlp = Ernie45MoeSparseMoeBlock(config, dtype)
        else:
            self.mlp = GatedMLP(width, inner, act, dtype, config.use_bias)
        self.input_layernorm = nn.RMSNorm(width, dtype)
        self.post_attention_layernorm = nn.RMSNorm(width, dtype)


class Ernie45MoeModel(Ernie45Model):
    layer_class: ClassVar[type[Any]] = Ernie45MoeDecoderLayer


class Ernie45MoeForCausalLM(LlamaForCausalLM):
    model_class: ClassVar[type[LlamaModel]] = Ernie45MoeModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`, the routers in fp32."""
    return Ernie45MoeForCausalLM(Ernie45MoeConfig.read(config, where), dtype)
