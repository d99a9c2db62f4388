"""ConvBERT: convolutions beside half of the heads: counted, not run.

Tensors as `transformers/models/convbert/modeling_convbert.py` (5.23) names them.
"""

from __future__ import annotations

from typing import Any

from weigh.ghost.nn import Module
from weigh.models.berts import Draft, EncoderConfig, counted, encoder_of
from weigh.models.common import CausalModel
from weigh.models.config import Keys
from weigh.models.parts import AttentionParts, HeadParts, Parts
from weigh.records import dataclass


@dataclass(frozen=True)
class ConvBertConfig(EncoderConfig):
    embedding_size: int = 768
    head_ratio: int = 2
    conv_kernel_size: int = 9
    num_groups: int = 1

    prefix = "ConvBert"
    classes = ("ForMaskedLM",)
    base = "convbert"

    @property
    def embedding_width(self) -> int:
        return self.embedding_size

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        super().settle(keys, found)
        keys.refuse("num_groups", "ConvBERT with grouped layers", unless=1)
        keys.divides("head_ratio", found["head_ratio"], "num_attention_heads", found["num_attention_heads"])


def describe(d: Draft, name: str) -> CausalModel:
    """The model of that name."""
    config, make, kernel, narrow = d.config, d.make, d.config.conv_kernel_size, d.config.embedding_size
    heads = config.num_attention_heads // config.head_ratio
    inner = heads * (d.width // config.num_attention_heads)

    def layer(_: int) -> Module:
        block = d.layer()
        separable = Parts(
            depthwise=make.conv(d.width, d.width, kernel, groups=d.width, bias=False),
            pointwise=make.conv(d.width, inner, 1, bias=False),
            bias=make.tensor(inner, 1),
        )
        block.attention.self = AttentionParts(
            **make.linears(d.width, inner, "query", "key", "value"),
            key_conv_attn_layer=separable,
            conv_kernel_layer=make.linear(inner, heads * kernel),
            conv_out_layer=make.linear(d.width, inner),
        )
        return block  # type: ignore[no-any-return]

    embeddings = d.embeddings()
    model = Parts(
        embeddings=embeddings,
        embeddings_project=make.linear(narrow, d.width) if narrow != d.width else None,
        encoder=encoder_of(config, config.base, layer),
    )
    predictions = HeadParts(LayerNorm=make.norm(narrow), dense=make.linear(d.width, narrow))
    tied_to = embeddings.word_embeddings if config.tie_word_embeddings else None
    head = make.head(tied_to, narrow, config.vocab_size, bias=True)
    return d.finish(name, model, generator_predictions=predictions, generator_lm_head=head)


build = counted(ConvBertConfig, describe)
