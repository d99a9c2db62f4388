"""Blenderbot, as `transformers/models/blenderbot/modeling_blenderbot.py` (5.23) writes it: BART with norms before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.models.bart import LEARNED, BartConfig, build_as
from weigh.models.common import CausalModel
from weigh.records import dataclass


@dataclass(frozen=True)
class BlenderbotConfig(BartConfig):
    """The settings of `BlenderbotConfig` that shape memory."""

    vocab_size: int = 8008
    d_model: int = 2560
    encoder_layers: int = 2
    encoder_ffn_dim: int = 10240
    encoder_attention_heads: int = 32
    decoder_layers: int = 24
    decoder_ffn_dim: int = 10240
    decoder_attention_heads: int = 32
    max_position_embeddings: int = 128

    prefix = "Blenderbot"
    pre_norm = True
    embedding_norm = False
    final_norm = True
    positions = LEARNED
    keeps_mask = True
    keeps_position_ids = False


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return build_as(BlenderbotConfig, config, dtype, where)
