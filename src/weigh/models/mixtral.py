"""Mixtral, as `transformers/models/mixtral/modeling_mixtral.py` (5.23) writes it: Mistral with a mixture of experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel
from weigh.models.config import Keys
from weigh.models.experts import Experts
from weigh.models.llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from weigh.models.sparse import MoeConfig
from weigh.records import dataclass

MODEL_TYPES = ("mixtral",)


@dataclass(frozen=True)
class MixtralConfig(MoeConfig):
    """The settings of `MixtralConfig` that shape memory."""

    intermediate_size: int = 14336
    num_key_value_heads: int = 8
    sliding_window: int | None = None
    num_experts_per_tok: int = 2
    num_local_experts: int = 8

    aliases: ClassVar[Mapping[str, str]] = {"num_experts": "num_local_experts"}

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """No noise."""
        super().settle(keys, found)
        keys.cannot_run("router_jitter_noise", "noise before the router", unless=0)


class MixtralTopKRouter(nn.Module):
    def __init__(self, config: MixtralConfig, dtype: DType) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.hidden_dim = config.hidden_size
        self.weight = nn.parameter((config.num_local_experts, config.hidden_size), dtype)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden_states = hidden_states.reshape(-1, self.hidden_dim)
        router_logits = ops.linear(hidden_states, self.weight)
        router_probs = ops.softmax(router_logits.float())
        router_top_value, router_indices = ops.topk(router_probs, self.top_k)
        router_top_value = ops.divide_(router_top_value, ops.sum(router_top_value, (-1,), keepdim=True))
        router_scores = router_top_value
        return router_logits, router_scores, router_indices


class MixtralSparseMoeBlock(nn.Module):
    role = nn.MLP

    def __init__(self, config: MixtralConfig, dtype: DType) -> None:
        super().__init__()
        self.gate = MixtralTopKRouter(config, dtype)
        width, inner = config.hidden_size, config.intermediate_size
        self.experts = Experts(
            config.num_local_experts, config.num_experts_per_tok, width, inner, config.hidden_act, dtype
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        batch_size, sequence_length, hidden_dim = hidden_states.shape
        hidden_states = hidden_states.view(-1, hidden_dim)
        _, top_k_weights, top_k_index = self.gate(hidden_states)
        hidden_states = self.experts(hidden_states, top_k_index, top_k_weights)
        hidden_states = hidden_states.reshape(batch_size, sequence_length, hidden_dim)
        return hidden_states


class MixtralDecoderLayer(LlamaDecoderLayer):
    mlp_class: ClassVar[type[Any]] = MixtralSparseMoeBlock


class MixtralModel(LlamaModel):
    layer_class = MixtralDecoderLayer


class MixtralForCausalLM(LlamaForCausalLM):
    model_class = MixtralModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return MixtralForCausalLM(MixtralConfig.read(config, where), dtype)
