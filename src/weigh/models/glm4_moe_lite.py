"""GLM-4-MoE Lite, as `transformers/models/glm4_moe_lite/modeling_glm4_moe_lite.py` (5.23) writes it.

DeepSeek-V3 with layers that say one by one whether they have experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.models.common import CausalModel
from weigh.models.config import DERIVED, Keys
from weigh.models.deepseek_v3 import DeepseekV3DecoderLayer, DeepseekV3ForCausalLM, DeepseekV3Model, LatentConfig
from weigh.models.glm4_moe import Glm4MoeMoE
from weigh.models.sparse import first_dense
from weigh.records import dataclass

MODEL_TYPES = ("glm4_moe_lite",)


@dataclass(frozen=True)
class Glm4MoeLiteConfig(LatentConfig):
    """The settings of `Glm4MoeLiteConfig` that shape memory."""

    vocab_size: int = 154880
    hidden_size: int = 2048
    intermediate_size: int = 10240
    moe_intermediate_size: int = 1536
    num_hidden_layers: int = 47
    num_attention_heads: int = 20
    num_key_value_heads: int = 20
    n_routed_experts: int = 64
    q_lora_rank: int | None = 768
    v_head_dim: int = 256
    qk_nope_head_dim: int = 192
    n_group: int = 1
    topk_group: int = 1
    num_experts_per_tok: int = 4
    mlp_layer_types: tuple[str, ...] = DERIVED

    aliases: ClassVar[Mapping[str, str]] = {"num_local_experts": "n_routed_experts", "head_dim": "qk_rope_head_dim"}

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """The first layer is dense."""
        if found["mlp_layer_types"] is None:
            found["mlp_layer_types"] = first_dense(found["num_hidden_layers"], 1)
        super().settle(keys, found)


class Glm4MoeLiteDecoderLayer(DeepseekV3DecoderLayer):
    moe_class = Glm4MoeMoE


class Glm4MoeLiteModel(DeepseekV3Model):
    layer_class = Glm4MoeLiteDecoderLayer


class Glm4MoeLiteForCausalLM(DeepseekV3ForCausalLM):
    model_class = Glm4MoeLiteModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Glm4MoeLiteForCausalLM(Glm4MoeLiteConfig.read(config, where), dtype)
