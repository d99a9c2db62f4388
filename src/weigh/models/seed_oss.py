"""Seed-OSS, as `transformers/models/seed_oss/modeling_seed_oss.py` (5.23) writes it.

Llama with a bias for queries, keys and values, and dropout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel
from weigh.models.config import Probability
from weigh.models.llama import (
    DecoderConfig,
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaMLP,
    LlamaModel,
)
from weigh.records import dataclass

MODEL_TYPES = ("seed_oss",)


@dataclass(frozen=True)
class SeedOssConfig(DecoderConfig):
    """The settings of `SeedOssConfig` that shape memory."""

    vocab_size: int = 155136
    intermediate_size: int = 27648
    num_hidden_layers: int = 64
    num_attention_heads: int = 80
    num_key_value_heads: int = 8
    head_dim: int = 128
    attention_bias: bool = True
    attention_out_bias: bool = False
    attention_dropout: Probability = 0.1
    residual_dropout: Probability = 0.1
    mlp_bias: bool = False


class SeedOssMLP(LlamaMLP):
    def __init__(self, config: SeedOssConfig, dtype: DType) -> None:
        super().__init__(config, dtype)
        self.residual_dropout = config.residual_dropout

    def forward(self, x: Tensor) -> Tensor:
        down_proj = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        down_proj = ops.dropout(down_proj, self.residual_dropout, self.training)
        return down_proj


class SeedOssAttention(LlamaAttention):
    def __init__(self, config: SeedOssConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.residual_dropout = config.residual_dropout

    def biases(self, config: SeedOssConfig) -> tuple[bool, bool]:  # type: ignore[override]
        """Two settings."""
        return config.attention_bias, config.attention_out_bias

    def finish(self, attn_output: Tensor) -> Tensor:
        """Dropout."""
        return ops.dropout(attn_output, self.residual_dropout, self.training)


class SeedOssDecoderLayer(LlamaDecoderLayer):
    attention_class = SeedOssAttention
    mlp_class = SeedOssMLP


class SeedOssModel(LlamaModel):
    layer_class = SeedOssDecoderLayer


class SeedOssForCausalLM(LlamaForCausalLM):
    model_class = SeedOssModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return SeedOssForCausalLM(SeedOssConfig.read(config, where), dtype)
