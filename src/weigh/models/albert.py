"""ALBERT: layers that share their weights: counted, not run.

Tensors as `transformers/models/albert/modeling_albert.py` (5.23) names them.
"""

from __future__ import annotations

from weigh.ghost import nn
from weigh.ghost.nn import Module
from weigh.models.berts import Draft, EncoderConfig, counted
from weigh.models.common import CausalModel, ModuleList
from weigh.models.parts import AttentionParts, BlockParts, Counted, HeadParts, Parts
from weigh.records import dataclass


@dataclass(frozen=True)
class AlbertConfig(EncoderConfig):
    vocab_size: int = 30000
    embedding_size: int = 128
    hidden_size: int = 4096
    num_attention_heads: int = 64
    intermediate_size: int = 16384
    num_hidden_groups: int = 1
    inner_group_num: int = 1

    prefix = "Albert"
    classes = ("ForMaskedLM", "Model")
    base = "albert"

    @property
    def embedding_width(self) -> int:
        return self.embedding_size


def describe(d: Draft, name: str) -> CausalModel:
    """The model of that name."""
    config, make, narrow, inner = d.config, d.make, d.config.embedding_size, d.config.intermediate_size

    def layer() -> Module:
        attention = AttentionParts(
            **make.linears(d.width, d.width, "query", "key", "value", "dense"), LayerNorm=make.norm(d.width)
        )
        return BlockParts(
            full_layer_layer_norm=make.norm(d.width),
            attention=attention,
            ffn=nn.MlpLinear(d.width, inner, d.dtype, bias=True),
            ffn_output=nn.MlpLinear(inner, d.width, d.dtype, bias=True),
        )

    groups = [
        Parts(albert_layers=ModuleList([layer() for _ in range(config.inner_group_num)]))
        for _ in range(config.num_hidden_groups)
    ]
    embeddings = d.embeddings()
    encoder = Parts(embedding_hidden_mapping_in=make.linear(narrow, d.width), albert_layer_groups=ModuleList(groups))
    model = Parts(embeddings=embeddings, encoder=encoder)
    if name == "AlbertModel":
        return Counted(name, embeddings=embeddings, encoder=encoder, pooler=make.linear(d.width, d.width))
    tied = config.tie_word_embeddings
    head = HeadParts(
        bias=make.tensor(config.vocab_size),
        LayerNorm=make.norm(narrow),
        dense=make.linear(d.width, narrow),
        decoder=make.head(embeddings.word_embeddings if tied else None, narrow, config.vocab_size, bias=not tied),
    )
    return d.finish(name, model, predictions=head)


build = counted(AlbertConfig, describe)
