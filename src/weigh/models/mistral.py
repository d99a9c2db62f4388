"""Mistral, as `transformers/models/mistral/modeling_mistral.py` (5.23) writes it: Llama with a sliding window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.models.common import CausalModel
from weigh.models.llama import DecoderConfig, LlamaForCausalLM
from weigh.records import dataclass

MODEL_TYPES = ("mistral",)


@dataclass(frozen=True)
class MistralConfig(DecoderConfig):
    """The settings of `MistralConfig` that shape memory."""

    intermediate_size: int = 14336
    num_key_value_heads: int = 8
    sliding_window: int | None = 4096


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return LlamaForCausalLM(MistralConfig.read(config, where), dtype)
