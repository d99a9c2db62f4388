"""SqueezeBERT: grouped convolutions in the place of matrices: counted, not run.

Tensors as `transformers/models/squeezebert/modeling_squeezebert.py` (5.23) names them.
"""

from __future__ import annotations

from weigh.ghost import nn
from weigh.ghost.nn import Module
from weigh.models.bert import BertPooler
from weigh.models.berts import Draft, EncoderConfig, change, counted
from weigh.models.common import CausalModel
from weigh.models.parts import AttentionParts, BlockParts, MlpParts, Parts
from weigh.records import dataclass


@dataclass(frozen=True)
class SqueezeBertConfig(EncoderConfig):
    embedding_size: int = 768
    q_groups: int = 4
    k_groups: int = 4
    v_groups: int = 4
    post_attention_groups: int = 1
    intermediate_groups: int = 4
    output_groups: int = 4

    prefix = "SqueezeBert"
    classes = ("ForMaskedLM",)
    base = "transformer"


def describe(d: Draft, name: str) -> CausalModel:
    """The model of that name."""
    config, make, inner = d.config, d.make, d.config.intermediate_size

    def normed(width_in: int, groups: int) -> dict[str, Module]:
        return {"conv1d": make.conv(width_in, d.width, 1, groups=groups), "layernorm": make.norm(d.width)}

    def layer(_: int) -> Module:
        return BlockParts(
            attention=AttentionParts(
                query=make.conv(d.width, d.width, 1, groups=config.q_groups),
                key=make.conv(d.width, d.width, 1, groups=config.k_groups),
                value=make.conv(d.width, d.width, 1, groups=config.v_groups),
            ),
            post_attention=AttentionParts(**normed(d.width, config.post_attention_groups)),
            intermediate=MlpParts(conv1d=make.conv(d.width, inner, 1, groups=config.intermediate_groups)),
            output=MlpParts(**normed(inner, config.output_groups)),
        )

    embeddings = change(d.embeddings(), "token_type_ids")
    stack = nn.Stack("transformer.encoder.layers", config.num_hidden_layers, layer)
    model = Parts(embeddings=embeddings, encoder=Parts(layers=stack), pooler=BertPooler(config, d.dtype))
    return d.finish(name, model, cls=d.cls(embeddings))


build = counted(SqueezeBertConfig, describe)
