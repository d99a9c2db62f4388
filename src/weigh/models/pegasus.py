"""Pegasus, as `transformers/models/pegasus/modeling_pegasus.py` (5.23) writes it: norms before, fixed positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.models.bart import FROZEN, BartConfig, build_as
from weigh.models.common import CausalModel
from weigh.records import dataclass


@dataclass(frozen=True)
class PegasusConfig(BartConfig):
    """The settings of `PegasusConfig` that shape memory."""

    prefix = "Pegasus"
    embedding_scales = False
    pre_norm = True
    embedding_norm = False
    final_norm = True
    positions = FROZEN
    keeps_mask = True


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return build_as(PegasusConfig, config, dtype, where)
