"""PLBart, as `transformers/models/plbart/modeling_plbart.py` (5.23) writes it: BART in another size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.models.bart import BartConfig, build_as
from weigh.models.common import CausalModel
from weigh.models.config import Probability
from weigh.records import dataclass


@dataclass(frozen=True)
class PLBartConfig(BartConfig):
    """The settings of `PLBartConfig` that shape memory."""

    vocab_size: int = 50005
    d_model: int = 768
    encoder_layers: int = 6
    encoder_ffn_dim: int = 3072
    encoder_attention_heads: int = 12
    decoder_layers: int = 6
    decoder_ffn_dim: int = 3072
    decoder_attention_heads: int = 12
    attention_dropout: Probability = 0.1

    prefix = "PLBart"


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return build_as(PLBartConfig, config, dtype, where)
