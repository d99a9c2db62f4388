"""RoCBERT: pronunciations and shapes beside words: counted, not run.

Tensors as `transformers/models/roc_bert/modeling_roc_bert.py` (5.23) names them.
"""

from __future__ import annotations

from weigh.models.berts import Draft, EncoderConfig, change, counted, encoder_of
from weigh.models.common import CausalModel
from weigh.models.parts import Parts
from weigh.records import dataclass


@dataclass(frozen=True)
class RoCBertConfig(EncoderConfig):
    enable_pronunciation: bool = True
    enable_shape: bool = True
    concat_input: bool = True
    pronunciation_embed_dim: int = 768
    pronunciation_vocab_size: int = 910
    shape_embed_dim: int = 512
    shape_vocab_size: int = 24858

    prefix = "RoCBert"
    base = "roc_bert"


def describe(d: Draft, name: str) -> CausalModel:
    """The model of that name."""
    config = d.config
    joined = d.width
    if config.concat_input:
        joined += config.pronunciation_embed_dim * config.enable_pronunciation
        joined += config.shape_embed_dim * config.enable_shape
    embeddings = change(
        d.embeddings(),
        pronunciation_embed=d.make.embedding(config.pronunciation_vocab_size, config.pronunciation_embed_dim),
        shape_embed=d.make.embedding(config.shape_vocab_size, config.shape_embed_dim),
        map_inputs_layer=d.make.linear(joined, d.width) if config.concat_input else None,
    )
    model = Parts(embeddings=embeddings, encoder=encoder_of(config, config.base, d.layer))
    return d.finish(name, model, cls=d.cls(embeddings))


build = counted(RoCBertConfig, describe)
