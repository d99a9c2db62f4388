"""Qwen2-MoE, as `transformers/models/qwen2_moe/modeling_qwen2_moe.py` (5.23) writes it.

Qwen2 with a mixture of experts in some layers or all, and one expert for every token, behind a gate of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from weigh.dtypes import FLOAT32, DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import FULL, SLIDING, CausalModel
from weigh.models.config import DERIVED, Count, Keys
from weigh.models.experts import Experts, GatedMLP
from weigh.models.llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from weigh.models.sparse import DENSE, SPARSE, MoeConfig
from weigh.records import dataclass

MODEL_TYPES = ("qwen2_moe",)


@dataclass(frozen=True)
class SparseConfig(MoeConfig):
    """What the configs of Qwen's mixtures of experts share."""

    vocab_size: int = 151936
    hidden_size: int = 2048
    num_hidden_layers: int = 24
    decoder_sparse_step: int = 1
    moe_intermediate_size: int = DERIVED
    num_experts_per_tok: int = DERIVED
    num_experts: int = DERIVED
    norm_topk_prob: bool = False
    mlp_only_layers: tuple[int, ...] = ()
    use_sliding_window: bool = False

    @property
    def mlp_layer_types(self) -> tuple[str, ...]:
        """Every n-th layer has experts, if it is not named as one without."""
        return tuple(
            SPARSE if i not in self.mlp_only_layers and (i + 1) % self.decoder_sparse_step == 0 else DENSE
            for i in range(self.num_hidden_layers)
        )

    @property
    def leading_layers(self) -> int:
        """None: the pattern begins with the first layer."""
        return 0

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """No list of dense layers is an empty one."""
        super().settle(keys, found)
        found["mlp_only_layers"] = found["mlp_only_layers"] or ()


@dataclass(frozen=True)
class Qwen2MoeConfig(SparseConfig):
    """The settings of `Qwen2MoeConfig` that shape memory."""

    intermediate_size: int = 5632
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    moe_intermediate_size: int = 1408
    shared_expert_intermediate_size: int = 5632
    num_experts_per_tok: int = 4
    num_experts: int = 60
    qkv_bias: bool = True
    sliding_window: Count = 4096
    max_window_layers: Count = 28
    layer_types: tuple[str, ...] = DERIVED

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """No window is one of no tokens, of which upstream makes a mask all the same."""
        super().settle(keys, found)
        window, first = found["use_sliding_window"], found["max_window_layers"]
        if not window:
            found["sliding_window"] = 0
        if found["layer_types"] is None:
            found["layer_types"] = tuple(
                SLIDING if window and i % 2 == 0 and i < first else FULL for i in range(found["num_hidden_layers"])
            )
        keys.check_layer_types(found)


class Qwen2MoeAttention(LlamaAttention):
    def biases(self, config: Any) -> tuple[bool, bool]:
        """Of queries, keys and values, but not of the output."""
        return config.qkv_bias, False


class Qwen2MoeTopKRouter(nn.Module):
    def __init__(self, config: Any, dtype: DType) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob
        self.hidden_dim = config.hidden_size
        self.weight = nn.parameter((config.num_experts, config.hidden_size), dtype)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden_states = hidden_states.reshape(-1, self.hidden_dim)
        router_logits = ops.linear(hidden_states, self.weight)
        router_probs = ops.softmax(router_logits, FLOAT32)
        router_top_value, router_indices = ops.topk(router_probs, self.top_k)
        if self.norm_topk_prob:
            router_top_value = ops.divide_(router_top_value, ops.sum(router_top_value, (-1,), keepdim=True))
        router_top_value = router_top_value.to(router_logits.dtype)
        router_scores = router_top_value
        return router_logits, router_scores, router_indices


class Qwen2MoeSparseMoeBlock(nn.Module):
    role = nn.MLP

    def __init__(self, config: Qwen2MoeConfig, dtype: DType) -> None:
        super().__init__()
        width, inner, act = config.hidden_size, config.moe_intermediate_size, config.hidden_act
        self.gate = Qwen2MoeTopKRouter(config, dtype)
        self.experts = Experts(config.num_experts, config.num_experts_per_tok, width, inner, act, dtype)
        self.shared_expert = GatedMLP(width, config.shared_expert_intermediate_size, act, dtype)
        self.shared_expert_gate = nn.Linear(width, 1, dtype)

    def forward(self, hidden_states: Tensor) -> Tensor:
        batch_size, sequence_length, hidden_dim = hidden_states.shape
        hidden_states_reshaped = hidden_states.view(-1, hidden_dim)
        shared_expert_output = self.shared_expert(hidden_states_reshaped)
        _, routing_weights, selected_experts = self.gate(hidden_states_reshaped)
        expert_output = self.experts(hidden_states_reshaped, selected_experts, routing_weights)
        shared_expert_output = ops.sigmoid(self.shared_expert_gate(hidden_states_reshaped)) * shared_expert_output
        expert_output = expert_output + shared_expert_output
        expert_output = expert_output.reshape(batch_size, sequence_length, hidden_dim)
        return expert_output  # type: ignore[no-any-return]


class Qwen2MoeDecoderLayer(LlamaDecoderLayer):
    attention_class: ClassVar[type[Any]] = Qwen2MoeAttention
    moe_class: ClassVar[type[Any]] = Qwen2MoeSparseMoeBlock

    def __init__(self, config: Any, dtype: DType, layer_idx: int) -> None:
        nn.Module.__init__(self)
        self.self_attn = self.attention_class(config, dtype, layer_idx)
        if config.mlp_layer_types[layer_idx] == SPARSE:
            self.mlp = self.moe_class(config, dtype)
        else:
            self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, config.hidden_act, dtype)
        self.input_layernorm = self.norm_class(config.hidden_size, dtype)
        self.post_attention_layernorm = self.norm_class(config.hidden_size, dtype)


class Qwen2MoeModel(LlamaModel):
    layer_class: ClassVar[type[Any]] = Qwen2MoeDecoderLayer

    def mask_types(self) -> Sequence[str]:
        """Both masks, always."""
        return (FULL, SLIDING)


class Qwen2MoeForCausalLM(LlamaForCausalLM):
    model_class = Qwen2MoeModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Qwen2MoeForCausalLM(Qwen2MoeConfig.read(config, where), dtype)
