"""Marian, as `transformers/models/marian/modeling_marian.py` (5.23) writes it: BART with fixed positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.models.bart import FROZEN, BartConfig, build_as
from weigh.models.common import CausalModel
from weigh.models.config import Keys
from weigh.records import dataclass


@dataclass(frozen=True)
class MarianConfig(BartConfig):
    """The settings of `MarianConfig` that shape memory."""

    vocab_size: int = 58101

    prefix = "Marian"
    embedding_scales = False
    embedding_norm = False
    positions = FROZEN
    keeps_mask = True
    keeps_position_ids = False

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        super().settle(keys, found)
        keys.refuse("share_encoder_decoder_embeddings", "Marian with two vocabularies", unless=True)
        keys.refuse("decoder_vocab_size", "Marian with two vocabularies", unless=found["vocab_size"])


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return build_as(MarianConfig, config, dtype, where, "MarianMTModel")
