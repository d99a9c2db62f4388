"""Longformer: queries, keys and values of their own for global tokens: counted, not run.

Tensors as `transformers/models/longformer/modeling_longformer.py` (5.23) names them.
"""

from __future__ import annotations

from weigh.ghost.nn import Module
from weigh.models.berts import Draft, EncoderConfig, change, counted, encoder_of
from weigh.models.common import CausalModel
from weigh.models.parts import Parts
from weigh.records import dataclass


@dataclass(frozen=True)
class LongformerConfig(EncoderConfig):
    prefix = "Longformer"
    classes = ("ForMaskedLM",)
    base = "longformer"


def describe(d: Draft, name: str) -> CausalModel:
    """The model of that name."""

    def layer(_: int) -> Module:
        block = d.layer()
        more = d.make.linears(d.width, d.width, "query_global", "key_global", "value_global")
        change(block.attention.self, **more)
        return block  # type: ignore[no-any-return]

    embeddings = change(d.roberta_embeddings(), "position_ids", "token_type_ids")
    model = Parts(embeddings=embeddings, encoder=encoder_of(d.config, d.config.base, layer))
    return d.finish(name, model, lm_head=d.lm_head(embeddings))


build = counted(LongformerConfig, describe)
