"""RoFormer: rotary positions: counted, not run.

Tensors as `transformers/models/roformer/modeling_roformer.py` (5.23) names them.
"""

from __future__ import annotations

from typing import Any

from weigh.models.berts import Draft, EncoderConfig, change, counted, encoder_of
from weigh.models.common import CausalModel
from weigh.models.parts import HeadParts, Parts
from weigh.records import dataclass


@dataclass(frozen=True)
class RoFormerConfig(EncoderConfig):
    vocab_size: int = 50000
    embedding_size: int | None = None
    max_position_embeddings: int = 1536

    prefix = "RoFormer"
    base = "roformer"

    @property
    def embedding_width(self) -> int:
        return self.hidden_size if self.embedding_size is None else self.embedding_size


def describe(d: Draft, name: str) -> CausalModel:
    """The model of that name."""
    config, narrow = d.config, d.config.embedding_width
    embeddings: Any = change(d.embeddings(), "position_embeddings", "position_ids", "token_type_ids")
    places = d.make.embedding(config.max_position_embeddings, d.width // config.num_attention_heads)
    places.weight.requires_grad = False
    model = Parts(
        embeddings=embeddings,
        embeddings_project=d.make.linear(narrow, d.width) if narrow != d.width else None,
        encoder=encoder_of(config, config.base, d.layer, embed_positions=places),
    )
    head: Any = d.cls(embeddings)
    change(head.predictions, transform=HeadParts(dense=d.make.linear(d.width, narrow), LayerNorm=d.make.norm(narrow)))
    return d.finish(name, model, cls=head)


build = counted(RoFormerConfig, describe)
