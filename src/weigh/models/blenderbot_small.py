"""Blenderbot small, as `transformers/models/blenderbot_small/modeling_blenderbot_small.py` (5.23) writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.models.bart import LEARNED, BartConfig, build_as
from weigh.models.common import CausalModel
from weigh.records import dataclass


@dataclass(frozen=True)
class BlenderbotSmallConfig(BartConfig):
    """The settings of `BlenderbotSmallConfig` that shape memory."""

    d_model: int = 512
    encoder_layers: int = 8
    encoder_ffn_dim: int = 2048
    decoder_layers: int = 8
    decoder_ffn_dim: int = 2048
    max_position_embeddings: int = 512

    prefix = "BlenderbotSmall"
    embedding_scales = False
    norm_before_positions = True
    positions = LEARNED
    keeps_mask = True
    keeps_position_ids = False


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return build_as(BlenderbotSmallConfig, config, dtype, where)
