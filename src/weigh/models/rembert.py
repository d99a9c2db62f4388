"""RemBERT: narrow embeddings in, wide ones out: counted, not run.

Tensors as `transformers/models/rembert/modeling_rembert.py` (5.23) names them.
"""

from __future__ import annotations

from typing import Any

from weigh.models.berts import Draft, EncoderConfig, change, counted, encoder_of
from weigh.models.common import CausalModel
from weigh.models.config import Keys
from weigh.models.parts import HeadParts, Parts
from weigh.records import dataclass


@dataclass(frozen=True)
class RemBertConfig(EncoderConfig):
    vocab_size: int = 250300
    hidden_size: int = 1152
    num_hidden_layers: int = 32
    num_attention_heads: int = 18
    intermediate_size: int = 4608
    input_embedding_size: int = 256
    output_embedding_size: int = 1664
    tie_word_embeddings: bool = False

    prefix = "RemBert"
    base = "rembert"

    @property
    def embedding_width(self) -> int:
        return self.input_embedding_size

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        super().settle(keys, found)
        keys.refuse("tie_word_embeddings", "RemBERT with tied embeddings")


def describe(d: Draft, name: str) -> CausalModel:
    """The model of that name."""
    config, wide = d.config, d.config.output_embedding_size
    entry = d.make.linear(config.input_embedding_size, d.width)
    encoder = encoder_of(config, config.base, d.layer, embedding_hidden_mapping_in=entry)
    model = Parts(embeddings=change(d.embeddings(), "token_type_ids"), encoder=encoder)
    head = HeadParts(
        dense=d.make.linear(d.width, wide),
        decoder=d.make.linear(wide, config.vocab_size),
        LayerNorm=d.make.norm(wide),
    )
    return d.finish(name, model, cls=Parts(predictions=head))


build = counted(RemBertConfig, describe)
