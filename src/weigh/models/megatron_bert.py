"""Megatron-BERT: norms before attention and MLP: counted, not run.

Tensors as `transformers/models/megatron_bert/modeling_megatron_bert.py` (5.23) names them.
"""

from __future__ import annotations

from weigh.ghost.nn import Module
from weigh.models.berts import Draft, EncoderConfig, change, counted, encoder_of
from weigh.models.common import CausalModel
from weigh.models.parts import BlockParts, Parts
from weigh.records import dataclass


@dataclass(frozen=True)
class MegatronBertConfig(EncoderConfig):
    vocab_size: int = 29056
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096

    prefix = "MegatronBert"
    base = "bert"


def describe(d: Draft, name: str) -> CausalModel:
    """The model of that name."""

    def layer(_: int) -> Module:
        return BlockParts(attention=d.attention(ln=d.make.norm(d.width)), **d.mlp(), ln=d.make.norm(d.width))

    embeddings = change(d.embeddings(), "LayerNorm", "token_type_ids")
    encoder = encoder_of(d.config, d.config.base, layer, ln=d.make.norm(d.width))
    return d.finish(name, Parts(embeddings=embeddings, encoder=encoder), cls=d.cls(embeddings))


build = counted(MegatronBertConfig, describe)
