"""Flint, as `transformers/models/flint/modeling_flint.py` (5.23) writes it.

Qwen3-MoE with sinks, windows in three layers of four, and an expert for every token. Counted, not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.models.common import FULL, SLIDING, CausalModel
from weigh.models.config import DERIVED, Keys
from weigh.models.experts import Experts, GatedMLP
from weigh.models.hybrid import settle_layer_types
from weigh.models.llama import LlamaForCausalLM, LlamaModel
from weigh.models.qwen2_moe import Qwen2MoeDecoderLayer, Qwen2MoeTopKRouter, SparseConfig
from weigh.models.qwen3 import Qwen3Attention
from weigh.records import dataclass

MODEL_TYPES = ("flint",)


@dataclass(frozen=True)
class FlintConfig(SparseConfig):
    """The settings of `FlintConfig` that shape memory."""

    vocab_size: int = 150144
    intermediate_size: int = 6144
    num_hidden_layers: int = 49
    num_key_value_heads: int = 4
    head_dim: int = 128
    sliding_window: int = 513
    moe_intermediate_size: int = 512
    shared_expert_intermediate_size: int = 1024
    num_experts_per_tok: int = 6
    num_experts: int = 256
    norm_topk_prob: bool = True
    attention_bias: bool = False
    mlp_only_layers: tuple[int, ...] = DERIVED
    layer_types: tuple[str, ...] = DERIVED

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """Full attention in the first two layers, in the last, and in every fourth."""
        if found["mlp_only_layers"] is None:
            found["mlp_only_layers"] = (0, 1)
        super().settle(keys, found)
        last = found["num_hidden_layers"] - 1
        settle_layer_types(
            keys, found, (FULL, SLIDING), lambda i: FULL if i < 2 or i % 4 == 1 or i == last else SLIDING
        )


class FlintSparseMoeBlock(nn.Module):
    role = nn.MLP

    def __init__(self, config: Any, dtype: DType) -> None:
        super().__init__()
        width, inner, act = config.hidden_size, config.moe_intermediate_size, config.hidden_act
        self.experts = Experts(config.num_experts, config.num_experts_per_tok, width, inner, act, dtype)
        self.gate = Qwen2MoeTopKRouter(config, dtype)
        self.shared_expert = GatedMLP(width, config.shared_expert_intermediate_size, act, dtype)


class FlintAttention(Qwen3Attention):
    def __init__(self, config: Any, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.sinks = nn.parameter((config.num_attention_heads,), dtype)


class FlintDecoderLayer(Qwen2MoeDecoderLayer):
    attention_class = FlintAttention
    moe_class = FlintSparseMoeBlock


class FlintModel(LlamaModel):
    layer_class = FlintDecoderLayer


class FlintForCausalLM(LlamaForCausalLM):
    model_class = FlintModel
    forward = CausalModel.forward


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return FlintForCausalLM(FlintConfig.read(config, where), dtype)
