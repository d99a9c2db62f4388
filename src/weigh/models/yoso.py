"""YOSO and MRA: BERT with two more positions: counted, not run.

Tensors as `transformers/models/yoso/modeling_yoso.py` (5.23) names them.
"""

from __future__ import annotations

from weigh.models.berts import Draft, EncoderConfig, counted, encoder_of, two_more_positions
from weigh.models.common import CausalModel
from weigh.models.parts import Parts
from weigh.records import dataclass


@dataclass(frozen=True)
class YosoConfig(EncoderConfig):
    vocab_size: int = 50265
    max_position_embeddings: int = 4096
    type_vocab_size: int = 1

    prefix = "Yoso"
    classes = ("ForMaskedLM",)
    base = "yoso"


@dataclass(frozen=True)
class MraConfig(EncoderConfig):
    vocab_size: int = 50265
    type_vocab_size: int = 1

    prefix = "Mra"
    classes = ("ForMaskedLM",)
    base = "mra"


def describe(d: Draft, name: str) -> CausalModel:
    """The model of that name."""
    embeddings = d.embeddings()
    two_more_positions(d, embeddings)
    model = Parts(embeddings=embeddings, encoder=encoder_of(d.config, d.config.base, d.layer))
    return d.finish(name, model, cls=d.cls(embeddings))


build = counted({"yoso": YosoConfig, "mra": MraConfig}, describe)
