"""mT5, as `transformers/models/mt5/modeling_mt5.py` (5.23) writes it: T5 that never scales its decoder's output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.models.common import CausalModel
from weigh.models.t5 import T5Config, T5ForConditionalGeneration, build_as
from weigh.records import dataclass


@dataclass(frozen=True)
class MT5Config(T5Config):
    """The settings of `MT5Config` that shape memory."""

    vocab_size: int = 250112
    d_ff: int = 1024
    num_layers: int = 8
    num_heads: int = 6
    feed_forward_proj: str = "gated-gelu"

    scale = False


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return build_as(MT5Config, T5ForConditionalGeneration, config, dtype, where, "MT5")
