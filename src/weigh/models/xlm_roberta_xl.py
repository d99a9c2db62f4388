"""XLM-RoBERTa XL: norms before attention and MLP, and one behind the encoder: counted, not run.

Tensors as `transformers/models/xlm_roberta_xl/modeling_xlm_roberta_xl.py` (5.23) names them.
"""

from __future__ import annotations

from weigh.ghost.nn import Module
from weigh.models.berts import Draft, EncoderConfig, change, counted, encoder_of
from weigh.models.common import CausalModel
from weigh.models.parts import BlockParts, Parts
from weigh.records import dataclass


@dataclass(frozen=True)
class XLMRobertaXLConfig(EncoderConfig):
    vocab_size: int = 250880
    hidden_size: int = 2560
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    intermediate_size: int = 10240
    max_position_embeddings: int = 514
    type_vocab_size: int = 1

    prefix = "XLMRobertaXL"
    base = "roberta"


def describe(d: Draft, name: str) -> CausalModel:
    """The model of that name."""

    def layer(_: int) -> Module:
        attention = d.attention(self_attn_layer_norm=d.make.norm(d.width))
        return BlockParts(attention=attention, **d.mlp(), LayerNorm=d.make.norm(d.width))

    embeddings = change(d.roberta_embeddings(), "LayerNorm")
    encoder = encoder_of(d.config, d.config.base, layer, LayerNorm=d.make.norm(d.width))
    return d.finish(name, Parts(embeddings=embeddings, encoder=encoder), lm_head=d.lm_head(embeddings))


build = counted(XLMRobertaXLConfig, describe)
