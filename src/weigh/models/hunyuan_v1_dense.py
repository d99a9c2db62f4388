"""Hunyuan, as `transformers/models/hunyuan_v1_dense/modeling_hunyuan_v1_dense.py` (5.23) writes it.

Llama that norms every query and key after their rotation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel
from weigh.models.config import ROPE_TYPES, Keys, cannot_run
from weigh.models.llama import DecoderConfig, LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from weigh.records import dataclass

MODEL_TYPES = ("hunyuan_v1_dense",)


@dataclass(frozen=True)
class HunYuanDenseV1Config(DecoderConfig):
    """The settings of `HunYuanDenseV1Config` that shape memory."""

    vocab_size: int = 290943
    attention_bias: bool = False

    rope_types = (*ROPE_TYPES, "dynamic")

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """Upstream takes a `head_dim`, and has none; with an `alpha`, "dynamic" frequencies are worked out once."""
        keys.size("head_dim")
        super().settle(keys, found)
        if keys.rope_type(known=cls.rope_types) == "dynamic":
            rope = keys.config.get("rope_scaling") or keys.config.get("rope_parameters") or {}
            if not rope.get("alpha"):
                cannot_run("the rotary embedding 'dynamic'", f"{keys.where}: rope_parameters")


class HunYuanDenseV1Attention(LlamaAttention):
    def __init__(self, config: DecoderConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.query_layernorm = nn.RMSNorm(self.head_dim, dtype)
        self.key_layernorm = nn.RMSNorm(self.head_dim, dtype)

    def rotate(self, query: Tensor, key: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Rotated, then normed."""
        query, key = super().rotate(query, key, position_embeddings)
        query = self.query_layernorm(query)
        key = self.key_layernorm(key)
        return query, key


class HunYuanDenseV1DecoderLayer(LlamaDecoderLayer):
    attention_class = HunYuanDenseV1Attention


class HunYuanDenseV1Model(LlamaModel):
    layer_class = HunYuanDenseV1DecoderLayer


class HunYuanDenseV1ForCausalLM(LlamaForCausalLM):
    model_class = HunYuanDenseV1Model


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return HunYuanDenseV1ForCausalLM(HunYuanDenseV1Config.read(config, where), dtype)
