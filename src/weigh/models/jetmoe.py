"""JetMoE, as `transformers/models/jetmoe/modeling_jetmoe.py` (5.23) writes it; counted, not run.

Experts in the MLPs, and others in the attention: each makes queries of its own, over the same keys and values.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.errors import InputError
from weigh.ghost import nn
from weigh.models.common import CausalModel
from weigh.models.config import Keys
from weigh.models.llama import LlamaForCausalLM, LlamaModel
from weigh.models.sparse import MoeConfig
from weigh.records import dataclass

MODEL_TYPES = ("jetmoe",)


@dataclass(frozen=True)
class JetMoeConfig(MoeConfig):
    """The settings of `JetMoeConfig` that shape memory."""

    hidden_size: int = 2048
    num_hidden_layers: int = 12
    num_key_value_heads: int = 16
    head_dim: int = 128
    intermediate_size: int = 5632
    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    tie_word_embeddings: bool = True

    aliases: ClassVar[Mapping[str, str]] = {"activation_function": "hidden_act", "kv_channels": "head_dim"}

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """Every key has a query of each expert that a token chose."""
        chosen = found["num_experts_per_tok"]
        if chosen > found["num_local_experts"]:
            hint = "A token cannot choose more experts than there are."
            raise InputError(f"is {chosen}", where=f"{keys.where}: num_experts_per_tok", hint=hint)
        found["num_attention_heads"] = found["num_key_value_heads"] * chosen
        super().settle(keys, found)


class JetMoeParallelExperts(nn.Module):
    def __init__(self, config: JetMoeConfig, input_size: int, output_size: int, dtype: DType) -> None:
        super().__init__()
        experts = config.num_local_experts
        self.active_share = Fraction(config.num_experts_per_tok, experts)
        self.weight = nn.parameter((experts, output_size, input_size), dtype)


class JetMoeTopKGating(nn.Module):
    def __init__(self, config: JetMoeConfig, dtype: DType) -> None:
        super().__init__()
        self.layer = nn.Linear(config.hidden_size, config.num_local_experts, dtype)


class JetMoeMoE(nn.Module):
    role = nn.MLP

    def __init__(self, config: JetMoeConfig, dtype: DType) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.bias = nn.parameter((width,), dtype)
        self.input_linear = JetMoeParallelExperts(config, width, inner * 2, dtype)
        self.output_linear = JetMoeParallelExperts(config, inner, width, dtype)
        self.router = JetMoeTopKGating(config, dtype)


class JetMoeMoA(nn.Module):
    def __init__(self, config: JetMoeConfig, dtype: DType) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.head_dim * config.num_key_value_heads
        self.bias = nn.parameter((width,), dtype)
        self.input_linear = JetMoeParallelExperts(config, width, inner, dtype)
        self.output_linear = JetMoeParallelExperts(config, inner, width, dtype)
        self.router = JetMoeTopKGating(config, dtype)


class JetMoeAttention(nn.Module):
    role = nn.ATTENTION

    def __init__(self, config: JetMoeConfig, dtype: DType) -> None:
        super().__init__()
        self.experts = JetMoeMoA(config, dtype)
        self.kv_proj = nn.Linear(config.hidden_size, config.head_dim * config.num_key_value_heads * 2, dtype)


class JetMoeDecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: JetMoeConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        self.mlp = JetMoeMoE(config, dtype)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, dtype)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, dtype)
        self.self_attention = JetMoeAttention(config, dtype)


class JetMoeModel(LlamaModel):
    layer_class: ClassVar[type[Any]] = JetMoeDecoderLayer


class JetMoeForCausalLM(LlamaForCausalLM):
    model_class = JetMoeModel
    forward = CausalModel.forward


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return JetMoeForCausalLM(JetMoeConfig.read(config, where), dtype)
