"""MobileBERT: narrow layers between bottlenecks: counted, not run.

Tensors as `transformers/models/mobilebert/modeling_mobilebert.py` (5.23) names them.
"""

from __future__ import annotations

from typing import Any

from weigh.ghost.nn import Module
from weigh.models.berts import Draft, EncoderConfig, counted, encoder_of
from weigh.models.common import CausalModel, ModuleList
from weigh.models.config import Keys
from weigh.models.parts import AttentionParts, BlockParts, HeadParts, MlpParts, Parts, positions
from weigh.records import dataclass


@dataclass(frozen=True)
class MobileBertConfig(EncoderConfig):
    hidden_size: int = 512
    num_hidden_layers: int = 24
    num_attention_heads: int = 4
    intermediate_size: int = 512
    embedding_size: int = 128
    trigram_input: bool = True
    intra_bottleneck_size: int = 128
    use_bottleneck_attention: bool = False
    key_query_shared_bottleneck: bool = True
    num_feedforward_networks: int = 4

    prefix = "MobileBert"
    classes = ("ForMaskedLM",)
    base = "mobilebert"

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        super().settle(keys, found)
        keys.refuse("use_bottleneck", "MobileBERT without bottlenecks", unless=True)
        keys.refuse("use_bottleneck_attention", "MobileBERT with another bottleneck in its attention")
        keys.refuse("key_query_shared_bottleneck", "MobileBERT with other bottlenecks", unless=True)
        keys.refuse("tie_word_embeddings", "MobileBERT with untied embeddings", unless=True)


def describe(d: Draft, name: str) -> CausalModel:
    """The model of that name."""
    config, make, narrow, inner = d.config, d.make, d.config.intra_bottleneck_size, d.config.intermediate_size

    def dense(width_in: int, width_out: int, **more: Module) -> MlpParts:
        return MlpParts(dense=make.linear(width_in, width_out), LayerNorm=make.norm(width_out), **more)

    def mlp(**output: Module) -> dict[str, Module]:
        return {"intermediate": MlpParts(dense=make.linear(narrow, inner)), "output": dense(inner, narrow, **output)}

    def layer(_: int) -> Module:
        inside = Parts(**make.linears(narrow, narrow, "query", "key"), value=make.linear(d.width, narrow))
        return BlockParts(
            attention=AttentionParts(self=inside, output=dense(narrow, narrow)),
            **mlp(bottleneck=dense(narrow, d.width)),
            bottleneck=Parts(input=dense(d.width, narrow), attention=dense(d.width, narrow)),
            ffn=ModuleList([Parts(**mlp()) for _ in range(config.num_feedforward_networks - 1)]),
        )

    embeddings = Parts(
        word_embeddings=make.embedding(config.vocab_size, config.embedding_size),
        position_embeddings=make.embedding(config.max_position_embeddings, d.width),
        token_type_embeddings=make.embedding(config.type_vocab_size, d.width),
        embedding_transformation=make.linear(config.embedding_size * (3 if config.trigram_input else 1), d.width),
        LayerNorm=make.norm(d.width),
        position_ids=positions(config.max_position_embeddings),
    )
    transform = Parts(dense=make.linear(d.width, d.width), LayerNorm=make.norm(d.width))
    rest = Parts(weight=make.tensor(d.width - config.embedding_size, config.vocab_size))
    head = HeadParts(bias=make.tensor(config.vocab_size), transform=transform, dense=rest)
    model = Parts(embeddings=embeddings, encoder=encoder_of(config, config.base, layer))
    return d.finish(name, model, cls=Parts(predictions=head))


build = counted(MobileBertConfig, describe)
