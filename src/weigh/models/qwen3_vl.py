"""Qwen3-VL and its mixture of experts, as `transformers/models/qwen3_vl/modeling_qwen3_vl.py` (5.23) writes it.

Qwen3 with Qwen2-VL's three positions, whose frequencies are interleaved, and a tower of which some layers reach into
the first layers of the language model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.models.common import CausalModel
from weigh.models.config import DERIVED, Keys
from weigh.models.llama import DecoderConfig, LlamaForCausalLM
from weigh.models.multimodal import check_class, part, ties
from weigh.models.qwen2_vl import MROPE_TYPES, Interleaved, ThreePositions, qwen_vl, settle_mrope
from weigh.models.qwen3 import Qwen3DecoderLayer
from weigh.models.qwen3_moe import Qwen3MoeConfig, Qwen3MoeDecoderLayer
from weigh.models.towers.qwen_vl import Qwen3VLVision
from weigh.records import dataclass

MODEL_TYPES = ("qwen3_vl", "qwen3_vl_moe")


@dataclass(frozen=True)
class Qwen3VLTextConfig(DecoderConfig):
    """The settings of `Qwen3VLTextConfig` that shape memory."""

    vocab_size: int = 151936
    intermediate_size: int = 22016
    num_key_value_heads: int = 32
    head_dim: int = 128
    attention_bias: bool = False
    mrope_section: tuple[int, ...] = (24, 20, 20)

    rope_types = MROPE_TYPES

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """How many frequencies belong to time, height and width."""
        super().settle(keys, found)
        settle_mrope(keys, found)


@dataclass(frozen=True)
class Qwen3VLMoeTextConfig(Qwen3MoeConfig):
    """The settings of `Qwen3VLMoeTextConfig` that shape memory."""

    intermediate_size: int = 5632
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    head_dim: int = DERIVED
    moe_intermediate_size: int = 1408
    num_experts_per_tok: int = 4
    num_experts: int = 60
    norm_topk_prob: bool = True
    mrope_section: tuple[int, ...] = (24, 20, 20)

    rope_types = MROPE_TYPES

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """No windows, and the chosen experts' weights always sum to one."""
        super().settle(keys, found)
        found["sliding_window"], found["norm_topk_prob"] = None, True
        settle_mrope(keys, found)


class Qwen3VLTextModel(ThreePositions):
    layer_class: ClassVar[type[Any]] = Qwen3DecoderLayer
    kinds = 4

    def rotary(self, config: DecoderConfig) -> nn.Module:
        """Of three positions."""
        return Interleaved(config.head_dim)


class Qwen3VLMoeTextModel(Qwen3VLTextModel):
    layer_class = Qwen3MoeDecoderLayer


class Qwen3VLText(LlamaForCausalLM):
    model_class = Qwen3VLTextModel


class Qwen3VLMoeText(LlamaForCausalLM):
    model_class = Qwen3VLMoeTextModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    sparse = config["model_type"] == "qwen3_vl_moe"
    check_class(
        config, "Qwen3VLMoeForConditionalGeneration" if sparse else "Qwen3VLForConditionalGeneration", where=where
    )
    tower = Qwen3VLVision.read(part(config, "vision_config", ""), f"{where}: vision_config")
    text = part(config, "text_config", "")
    text["tie_word_embeddings"] = ties(config, text, default=False)
    language: CausalModel
    if sparse:
        language = Qwen3VLMoeText(Qwen3VLMoeTextConfig.read(text, f"{where}: text_config"), dtype)
    else:
        language = Qwen3VLText(Qwen3VLTextConfig.read(text, f"{where}: text_config"), dtype)
    return qwen_vl(language, tower, dtype)
