"""LUKE: words and entities, and queries between them: counted, not run.

Tensors as `transformers/models/luke/modeling_luke.py` (5.23) names them.
"""

from __future__ import annotations

from typing import Any

from weigh.ghost.nn import Module
from weigh.models.bert import BertPooler
from weigh.models.berts import Draft, EncoderConfig, change, counted, encoder_of
from weigh.models.common import CausalModel
from weigh.models.parts import HeadParts, Parts
from weigh.records import dataclass


@dataclass(frozen=True)
class LukeConfig(EncoderConfig):
    vocab_size: int = 50267
    entity_vocab_size: int = 500000
    entity_emb_size: int = 256
    use_entity_aware_attention: bool = True

    prefix = "Luke"
    classes = ("ForMaskedLM",)
    base = "luke"


def describe(d: Draft, name: str) -> CausalModel:
    """The model of that name."""
    config, make, entity = d.config, d.make, d.config.entity_emb_size

    def layer(_: int) -> Module:
        block = d.layer()
        if config.use_entity_aware_attention:
            change(block.attention.self, **make.linears(d.width, d.width, "w2e_query", "e2w_query", "e2e_query"))
        return block  # type: ignore[no-any-return]

    embeddings: Any = change(d.embeddings(), "position_ids", "token_type_ids")
    entities = Parts(
        entity_embeddings=make.embedding(config.entity_vocab_size, entity),
        entity_embedding_dense=make.linear(entity, d.width, bias=False) if entity != d.width else None,
        position_embeddings=make.embedding(config.max_position_embeddings, d.width),
        token_type_embeddings=make.embedding(config.type_vocab_size, d.width),
        LayerNorm=make.norm(d.width),
    )
    transform = Parts(dense=make.linear(d.width, entity), LayerNorm=make.norm(entity))
    head: Any = d.lm_head(embeddings)
    change(head, decoder=make.head(None, d.width, config.vocab_size))
    if not config.tie_word_embeddings:
        change(head.decoder, bias=make.tensor(config.vocab_size))
    model = Parts(
        embeddings=embeddings,
        entity_embeddings=entities,
        encoder=encoder_of(config, config.base, layer),
        pooler=BertPooler(config, d.dtype),
    )
    predictions = HeadParts(bias=make.tensor(config.entity_vocab_size), transform=transform)
    return d.finish(name, model, lm_head=head, entity_predictions=predictions)


build = counted(LukeConfig, describe)
