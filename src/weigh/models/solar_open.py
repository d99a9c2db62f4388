"""Solar Open, as `transformers/models/solar_open/modeling_solar_open.py` (5.23) writes it.

Llama's attention with GLM-4-MoE's experts in every layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.models.common import CausalModel
from weigh.models.config import Keys, cannot_run
from weigh.models.deepseek_v3 import DeepseekV3DecoderLayer
from weigh.models.glm4_moe import Glm4MoeMoE
from weigh.models.llama import DecoderConfig, LlamaAttention, LlamaForCausalLM, LlamaModel
from weigh.models.sparse import MoeConfig, check_groups
from weigh.records import dataclass

MODEL_TYPES = ("solar_open",)


@dataclass(frozen=True)
class SolarOpenConfig(MoeConfig):
    """The settings of `SolarOpenConfig` that shape memory."""

    vocab_size: int = 196608
    num_hidden_layers: int = 48
    num_attention_heads: int = 64
    num_key_value_heads: int = 8
    head_dim: int = 128
    attention_bias: bool = False
    moe_intermediate_size: int = 1280
    num_experts_per_tok: int = 8
    n_shared_experts: int = 1
    n_routed_experts: int = 128
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = True

    aliases: ClassVar[Mapping[str, str]] = {"num_local_experts": "n_routed_experts"}

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """Groups of the same size, heads rotated as a whole."""
        super().settle(keys, found)
        if keys.rotary_width(found["head_dim"]) != found["head_dim"]:
            cannot_run("a rotary embedding of a part of the width", f"{keys.where}: rope_parameters")
        check_groups(keys, found)


class SolarOpenAttention(LlamaAttention):
    def biases(self, config: DecoderConfig) -> tuple[bool, bool]:
        """Of queries, keys and values, but not of the output."""
        return config.attention_bias, False


class SolarOpenDecoderLayer(DeepseekV3DecoderLayer):
    attention_class: ClassVar[type[Any]] = SolarOpenAttention
    moe_class = Glm4MoeMoE


class SolarOpenModel(LlamaModel):
    layer_class: ClassVar[type[Any]] = SolarOpenDecoderLayer


class SolarOpenForCausalLM(LlamaForCausalLM):
    model_class = SolarOpenModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return SolarOpenForCausalLM(SolarOpenConfig.read(config, where), dtype)
