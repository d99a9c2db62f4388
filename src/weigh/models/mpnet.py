"""MPNet: relative positions, no types of tokens: counted, not run.

Tensors as `transformers/models/mpnet/modeling_mpnet.py` (5.23) names them.
"""

from __future__ import annotations

from weigh.ghost.nn import Module
from weigh.models.bert import BertPooler
from weigh.models.berts import Draft, EncoderConfig, change, counted, encoder_of
from weigh.models.common import CausalModel
from weigh.models.parts import AttentionParts, Counted, Parts
from weigh.records import dataclass


@dataclass(frozen=True)
class MPNetConfig(EncoderConfig):
    vocab_size: int = 30527
    relative_attention_num_buckets: int = 32

    prefix = "MPNet"
    classes = ("ForMaskedLM", "Model")
    base = "mpnet"


def describe(d: Draft, name: str) -> CausalModel:
    """The model of that name."""

    def layer(_: int) -> Module:
        block = d.layer()
        inside = Parts(**d.make.linears(d.width, d.width, "q", "k", "v", "o"))
        block.attention = AttentionParts(attn=inside, LayerNorm=d.make.norm(d.width))
        return block  # type: ignore[no-any-return]

    embeddings = change(d.embeddings(), "token_type_embeddings", "token_type_ids")
    bias = d.make.embedding(d.config.relative_attention_num_buckets, d.config.num_attention_heads)
    encoder = encoder_of(d.config, d.config.base, layer, relative_attention_bias=bias)
    if name == "MPNetModel":
        return Counted(name, embeddings=embeddings, encoder=encoder, pooler=BertPooler(d.config, d.dtype))
    return d.finish(name, Parts(embeddings=embeddings, encoder=encoder), lm_head=d.lm_head(embeddings))


build = counted(MPNetConfig, describe)
