"""RoBERTa with its norms before attention and MLP: counted, not run.

Tensors as `transformers/models/roberta_prelayernorm/modeling_roberta_prelayernorm.py` (5.23) names them.
"""

from __future__ import annotations

from weigh.ghost.nn import Module
from weigh.models.berts import Draft, EncoderConfig, counted, encoder_of
from weigh.models.common import CausalModel
from weigh.models.parts import BlockParts, Parts
from weigh.records import dataclass


@dataclass(frozen=True)
class RobertaPreLayerNormConfig(EncoderConfig):
    vocab_size: int = 50265

    prefix = "RobertaPreLayerNorm"
    base = "roberta_prelayernorm"


def describe(d: Draft, name: str) -> CausalModel:
    """The model of that name."""

    def layer(_: int) -> Module:
        attention = d.attention(LayerNorm=d.make.norm(d.width))
        return BlockParts(attention=attention, **d.mlp(LayerNorm=d.make.norm(d.width)))

    embeddings = d.roberta_embeddings()
    encoder = encoder_of(d.config, d.config.base, layer)
    model = Parts(embeddings=embeddings, encoder=encoder, LayerNorm=d.make.norm(d.width))
    return d.finish(name, model, lm_head=d.lm_head(embeddings))


build = counted(RobertaPreLayerNormConfig, describe)
