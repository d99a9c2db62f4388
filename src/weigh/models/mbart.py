"""mBART, as `transformers/models/mbart/modeling_mbart.py` (5.23) writes it: BART with norms before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.models.bart import BartConfig, build_as
from weigh.models.common import CausalModel
from weigh.records import dataclass


@dataclass(frozen=True)
class MBartConfig(BartConfig):
    """The settings of `MBartConfig` that shape memory."""

    prefix = "MBart"
    pre_norm = True
    final_norm = True
    keeps_mask = True
    keeps_position_ids = False


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return build_as(MBartConfig, config, dtype, where)
