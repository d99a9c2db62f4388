"""Command A+, as `transformers/models/cohere2_moe/modeling_cohere2_moe.py` (5.23) writes it; counted, not run.

Command R7B with experts, behind dense layers with sizes and windows of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.models.common import FULL, SLIDING, CausalModel
from weigh.models.config import DERIVED, Count, Keys
from weigh.models.experts import Experts, GatedMLP
from weigh.models.llama import LlamaAttention, LlamaForCausalLM, LlamaModel
from weigh.models.sparse import SPARSE, MoeConfig, first_dense
from weigh.records import dataclass

MODEL_TYPES = ("cohere2_moe",)


@dataclass(frozen=True)
class Cohere2MoeConfig(MoeConfig):
    """The settings of `Cohere2MoeConfig` that shape memory."""

    vocab_size: int = 256000
    hidden_size: int = 8192
    intermediate_size: int = 22528
    num_hidden_layers: int = 40
    num_attention_heads: int = 64
    head_dim: int = 128
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    sliding_window: int | None = 4096
    sliding_window_pattern: int = 4
    num_experts_per_tok: int = 2
    num_experts: int = 8
    num_shared_experts: Count = 0
    layer_types: tuple[str, ...] = DERIVED
    mlp_layer_types: tuple[str, ...] = DERIVED
    first_k_dense_replace: Count = 0
    prefix_dense_sliding_window_pattern: int = 1
    prefix_dense_intermediate_size: int = DERIVED

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """The dense layers and the others each have their own pattern of windows."""
        count, dense = found["num_hidden_layers"], found["first_k_dense_replace"]
        if found["mlp_layer_types"] is None:
            found["mlp_layer_types"] = first_dense(count, dense)
        found["prefix_dense_intermediate_size"] = found["prefix_dense_intermediate_size"] or found["intermediate_size"]
        super().settle(keys, found)
        if found["layer_types"] is None:
            patterns = (
                (dense, found["prefix_dense_sliding_window_pattern"]),
                (count - dense, found["sliding_window_pattern"]),
            )
            found["layer_types"] = tuple(
                SLIDING if (i + 1) % every else FULL for layers, every in patterns for i in range(layers)
            )
        keys.check_layer_types(found)


class Cohere2MoeTopKRouter(nn.Module):
    def __init__(self, config: Cohere2MoeConfig, dtype: DType) -> None:
        super().__init__()
        self.weight = nn.parameter((config.num_experts, config.hidden_size), dtype)


class Cohere2MoeSparseMoeBlock(nn.Module):
    role = nn.MLP

    def __init__(self, config: Cohere2MoeConfig, dtype: DType) -> None:
        super().__init__()
        width, inner, act, shared = (
            config.hidden_size,
            config.intermediate_size,
            config.hidden_act,
            config.num_shared_experts,
        )
        self.gate = Cohere2MoeTopKRouter(config, dtype)
        self.experts = Experts(config.num_experts, config.num_experts_per_tok, width, inner, act, dtype)
        self.shared_experts = GatedMLP(width, inner * shared, act, dtype) if shared else None


class Cohere2MoeDecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: Cohere2MoeConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.prefix_dense_intermediate_size
        self.self_attn = LlamaAttention(config, dtype, layer_idx)
        if config.mlp_layer_types[layer_idx] == SPARSE:
            self.mlp: nn.Module = Cohere2MoeSparseMoeBlock(config, dtype)
        else:
            self.mlp = GatedMLP(width, inner, config.hidden_act, dtype)
        self.input_layernorm = nn.RMSNorm(width, dtype)  # or a layer norm without a bias, which weighs the same


class Cohere2MoeModel(LlamaModel):
    layer_class: ClassVar[type[Any]] = Cohere2MoeDecoderLayer


class Cohere2MoeForCausalLM(LlamaForCausalLM):
    model_class = Cohere2MoeModel
    forward = CausalModel.forward


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Cohere2MoeForCausalLM(Cohere2MoeConfig.read(config, where), dtype)
