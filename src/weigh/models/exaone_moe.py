"""K-EXAONE, as `transformers/models/exaone_moe/modeling_exaone_moe.py` (5.23) writes it.

EXAONE 4's attention in Llama's layers, with DeepSeek-V3's experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.models.common import CausalModel
from weigh.models.config import DERIVED, Count, Keys
from weigh.models.deepseek_v3 import DeepseekV3DecoderLayer
from weigh.models.exaone4 import Exaone4Attention, Exaone4Config
from weigh.models.llama import LlamaForCausalLM, LlamaModel
from weigh.models.sparse import MoeConfig, check_groups, first_dense
from weigh.records import dataclass

MODEL_TYPES = ("exaone_moe",)


@dataclass(frozen=True)
class ExaoneMoeConfig(Exaone4Config, MoeConfig):
    """The settings of `ExaoneMoeConfig` that shape memory."""

    mlp_layer_types: tuple[str, ...] = DERIVED
    first_k_dense_replace: Count = 1
    moe_intermediate_size: int = 1024
    num_experts: int = 64
    num_experts_per_tok: int = 8
    num_shared_experts: int = 1
    norm_topk_prob: bool = True
    n_group: int = 1
    topk_group: int = 1

    @property
    def n_routed_experts(self) -> int:
        """DeepSeek-V3's word for it."""
        return self.num_experts

    @property
    def n_shared_experts(self) -> int:
        """DeepSeek-V3's word for it."""
        return self.num_shared_experts

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """The first layers are dense."""
        if found["mlp_layer_types"] is None:
            found["mlp_layer_types"] = first_dense(found["num_hidden_layers"], found["first_k_dense_replace"])
        super().settle(keys, found)
        check_groups(keys, found, "num_experts")


class ExaoneMoeDecoderLayer(DeepseekV3DecoderLayer):
    attention_class: ClassVar[type[Any]] = Exaone4Attention


class ExaoneMoeModel(LlamaModel):
    layer_class: ClassVar[type[Any]] = ExaoneMoeDecoderLayer


class ExaoneMoeForCausalLM(LlamaForCausalLM):
    model_class = ExaoneMoeModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return ExaoneMoeForCausalLM(ExaoneMoeConfig.read(config, where), dtype)
