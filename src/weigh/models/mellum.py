"""Mellum 2, as `transformers/models/mellum/modeling_mellum.py` (5.23) writes it; counted, not run.

Qwen3-MoE with frequencies of its own for each type of layer. Leaves out the layers that predict further tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.models.common import FULL, SLIDING, CausalModel
from weigh.models.config import DERIVED, Keys
from weigh.models.deepseek_v3 import DeepseekV3DecoderLayer
from weigh.models.laguna import LagunaModel
from weigh.models.llama import LlamaForCausalLM
from weigh.models.mimo_v2_flash import rotary_widths
from weigh.models.qwen3 import Qwen3Attention
from weigh.models.qwen3_moe import Qwen3MoeSparseMoeBlock
from weigh.models.sparse import MoeConfig
from weigh.records import dataclass

MODEL_TYPES = ("mellum",)


@dataclass(frozen=True)
class MellumConfig(MoeConfig):
    """The settings of `MellumConfig` that shape memory."""

    vocab_size: int = 98304
    hidden_size: int = 2304
    intermediate_size: int = 7168
    num_hidden_layers: int = 28
    num_key_value_heads: int = 4
    head_dim: int = 128
    attention_bias: bool = False
    sliding_window: int | None = 1024
    moe_intermediate_size: int = 896
    num_experts_per_tok: int = 8
    num_experts: int = 64
    norm_topk_prob: bool = True
    layer_types: tuple[str, ...] = DERIVED
    mlp_layer_types: tuple[str, ...] = DERIVED
    rotary_widths: Mapping[str, int] = DERIVED

    aliases: ClassVar[Mapping[str, str]] = {"num_local_experts": "num_experts"}

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """All layers have experts, and none a window."""
        count = found["num_hidden_layers"]
        found["layer_types"] = found["layer_types"] or (FULL,) * count
        found["mlp_layer_types"] = found["mlp_layer_types"] or ("sparse",) * count
        super().settle(keys, found)
        keys.check_layer_types(found)
        found["rotary_widths"] = rotary_widths(keys, found, {FULL: 1.0, SLIDING: 1.0})


class MellumDecoderLayer(DeepseekV3DecoderLayer):
    attention_class: ClassVar[type[Any]] = Qwen3Attention
    moe_class: ClassVar[type[Any]] = Qwen3MoeSparseMoeBlock


class MellumModel(LagunaModel):
    layer_class: ClassVar[type[Any]] = MellumDecoderLayer


class MellumForCausalLM(LlamaForCausalLM):
    model_class = MellumModel
    forward = CausalModel.forward


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return MellumForCausalLM(MellumConfig.read(config, where), dtype)
