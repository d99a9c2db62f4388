"""ERNIE 4.5's mixture of experts, as `transformers/models/ernie4_5_moe/modeling_ernie4_5_moe.py` (5.23) writes it.

ERNIE 4.5 with experts in some layers, and routers in fp32 outside of autocast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from weigh.models.config import Count
from weigh.models.ernie4_5 import Ernie45Config
from weigh.models.sparse import MoeConfig

MODEL_TYPES = ("ernie4_5_moe",)


@dataclass(frozen=True)
class Ernie45MoeConfig(Ernie45Config, MoeConfig):
    """The settings of `Ernie4_5_MoeConfig` that shape memory."""

    hidden_size: int = 2560
    intermediate_size: int = 12288
    num_hidden_layers: int = 28
    num_attention_heads: int = 20
    num_key_value_heads: int = 4
    head_dim: int = None  # type: ignore[assignment]
    moe_intermediate_size: int = 1536
    moe_k: int = 6
    moe_num_experts: int = 64
    moe_num_shared_experts: Count = 2
    moe_layer_start_index: Count = 1
    moe_layer_end_index: int | None = None
    moe_layer_interval: int = 1

    aliases: ClassVar[Mapping[str, str]] = {"num_experts": "moe_num_experts", "num_experts_per_tok": "moe_k"}
