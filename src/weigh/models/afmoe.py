"""Trinity, as `transformers/models/afmoe/modeling_afmoe.py` (5.23) writes it; counted, not run.

Attention with a gate, three sliding windows to one full layer, norms before and after, experts behind dense layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.models.common import FULL, SLIDING, CausalModel
from weigh.models.config import DERIVED, Count, Keys
from weigh.models.experts import Experts, GatedMLP
from weigh.models.llama import LlamaForCausalLM, LlamaModel
from weigh.models.qwen3 import Qwen3Attention
from weigh.models.sparse import SPARSE, MoeConfig, first_dense
from weigh.records import dataclass

MODEL_TYPES = ("afmoe",)


@dataclass(frozen=True)
class AfmoeConfig(MoeConfig):
    """The settings of `AfmoeConfig` that shape memory."""

    vocab_size: int = 200192
    hidden_size: int = 2048
    intermediate_size: int = 6144
    moe_intermediate_size: int = 1408
    num_dense_layers: Count = 1
    num_attention_heads: int = 16
    head_dim: int = 128
    num_experts: int = 64
    num_experts_per_tok: int = 6
    num_shared_experts: int = 2
    global_attn_every_n_layers: int = 4
    sliding_window: int | None = 1024
    layer_types: tuple[str, ...] = DERIVED
    attention_bias: bool = False

    @property
    def mlp_layer_types(self) -> tuple[str, ...]:
        """The first layers are dense."""
        return first_dense(self.num_hidden_layers, self.num_dense_layers)

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """Every n-th layer has full attention."""
        super().settle(keys, found)
        if found["layer_types"] is None:
            every, layers = found["global_attn_every_n_layers"], range(found["num_hidden_layers"])
            found["layer_types"] = tuple(SLIDING if (i + 1) % every else FULL for i in layers)
        keys.check_layer_types(found)


class AfmoeTokenChoiceRouter(nn.Module):
    def __init__(self, config: AfmoeConfig, dtype: DType) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.num_experts, dtype)


class AfmoeSparseMoeBlock(nn.Module):
    role = nn.MLP

    def __init__(self, config: AfmoeConfig, dtype: DType) -> None:
        super().__init__()
        experts, width, inner, act = (
            config.num_experts,
            config.hidden_size,
            config.moe_intermediate_size,
            config.hidden_act,
        )
        self.router = AfmoeTokenChoiceRouter(config, dtype)
        self.shared_experts = GatedMLP(width, inner * config.num_shared_experts, act, dtype)
        self.experts = Experts(experts, config.num_experts_per_tok, width, inner, act, dtype)
        self.expert_bias = nn.parameter((experts,), dtype)
        self.expert_bias.requires_grad = False


class AfmoeAttention(Qwen3Attention):
    def __init__(self, config: AfmoeConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.gate_proj = nn.Linear(config.hidden_size, self.num_heads * self.head_dim, dtype)


class AfmoeDecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: AfmoeConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.self_attn = AfmoeAttention(config, dtype, layer_idx)
        self.input_layernorm = nn.RMSNorm(width, dtype)
        self.post_attention_layernorm = nn.RMSNorm(width, dtype)
        self.pre_mlp_layernorm = nn.RMSNorm(width, dtype)
        self.post_mlp_layernorm = nn.RMSNorm(width, dtype)
        if config.mlp_layer_types[layer_idx] == SPARSE:
            self.mlp: nn.Module = AfmoeSparseMoeBlock(config, dtype)
        else:
            self.mlp = GatedMLP(width, config.intermediate_size, config.hidden_act, dtype)


class AfmoeModel(LlamaModel):
    layer_class: ClassVar[type[Any]] = AfmoeDecoderLayer


class AfmoeForCausalLM(LlamaForCausalLM):
    model_class = AfmoeModel
    forward = CausalModel.forward


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return AfmoeForCausalLM(AfmoeConfig.read(config, where), dtype)
