"""BERT for generation: an encoder or a decoder without types of tokens: counted, not run.

Tensors as `transformers/models/bert_generation/modeling_bert_generation.py` (5.23) names them.
"""

from __future__ import annotations

from typing import Any

from weigh.models.berts import Draft, EncoderConfig, change, counted, encoder_of
from weigh.models.common import CausalModel
from weigh.models.parts import Counted, HeadParts, Parts
from weigh.records import dataclass


@dataclass(frozen=True)
class BertGenerationConfig(EncoderConfig):
    vocab_size: int = 50358
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096

    prefix = "BertGeneration"
    classes = ("Decoder", "Encoder")
    base = "bert"


def describe(d: Draft, name: str) -> CausalModel:
    """The model of that name."""
    embeddings: Any = change(d.embeddings(), "token_type_embeddings", "token_type_ids")
    model = Parts(embeddings=embeddings, encoder=encoder_of(d.config, d.config.base, d.layer))
    if name == "BertGenerationEncoder":
        return Counted(name, **vars(model))
    vocabulary, tied = d.config.vocab_size, d.config.tie_word_embeddings
    decoder = d.make.head(embeddings.word_embeddings if tied else None, d.width, vocabulary, bias=not tied)
    return d.finish(name, model, lm_head=HeadParts(bias=d.make.tensor(vocabulary), decoder=decoder))


build = counted(BertGenerationConfig, describe)
