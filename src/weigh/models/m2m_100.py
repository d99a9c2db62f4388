"""M2M-100 and NLLB, as `transformers/models/m2m_100/modeling_m2m_100.py` (5.23) writes it: BART with norms before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.models.bart import BUFFER, BartConfig, BartForConditionalGeneration
from weigh.models.common import CausalModel
from weigh.models.config import Probability, architecture
from weigh.records import dataclass


@dataclass(frozen=True)
class M2M100Config(BartConfig):
    """The settings of `M2M100Config` that shape memory."""

    vocab_size: int = 128112
    activation_function: str = "relu"
    attention_dropout: Probability = 0.1
    encoder_layerdrop: Probability = 0.05
    decoder_layerdrop: Probability = 0.05

    prefix = "M2M100"
    pre_norm = True
    embedding_norm = False
    final_norm = True
    positions = BUFFER
    logits_bias = False


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    name = architecture(config, ("M2M100ForConditionalGeneration",), where)
    return BartForConditionalGeneration(M2M100Config.read(config, where), dtype, name)
