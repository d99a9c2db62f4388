"""Jais 2, as `transformers/models/jais2/modeling_jais2.py` (5.23) writes it.

Llama with biases, layer norms, and an MLP without a gate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.models.arcee import ArceeMLP
from weigh.models.common import CausalModel
from weigh.models.llama import LlamaConfig, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from weigh.records import dataclass

MODEL_TYPES = ("jais2",)


@dataclass(frozen=True)
class Jais2Config(LlamaConfig):
    """The settings of `Jais2Config` that shape memory."""

    vocab_size: int = 150272
    hidden_size: int = 3328
    intermediate_size: int = 26624
    num_attention_heads: int = 26
    hidden_act: str = "relu2"
    attention_bias: bool = True
    mlp_bias: bool = True


class Jais2DecoderLayer(LlamaDecoderLayer):
    mlp_class = ArceeMLP
    norm_class = nn.LayerNorm


class Jais2Model(LlamaModel):
    layer_class = Jais2DecoderLayer
    norm_class = nn.LayerNorm


class Jais2ForCausalLM(LlamaForCausalLM):
    model_class = Jais2Model


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Jais2ForCausalLM(Jais2Config.read(config, where), dtype)
