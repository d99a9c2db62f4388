"""Nyströmformer: a convolution beside each attention: counted, not run.

Tensors as `transformers/models/nystromformer/modeling_nystromformer.py` (5.23) names them.
"""

from __future__ import annotations

from weigh.ghost.nn import Module
from weigh.models.berts import Draft, EncoderConfig, change, counted, encoder_of, two_more_positions
from weigh.models.common import CausalModel
from weigh.models.parts import Parts
from weigh.records import dataclass


@dataclass(frozen=True)
class NystromformerConfig(EncoderConfig):
    vocab_size: int = 30000
    max_position_embeddings: int = 510
    conv_kernel_size: int = 65

    prefix = "Nystromformer"
    classes = ("ForMaskedLM",)
    base = "nystromformer"


def describe(d: Draft, name: str) -> CausalModel:
    """The model of that name."""
    heads, kernel = d.config.num_attention_heads, d.config.conv_kernel_size

    def layer(_: int) -> Module:
        block = d.layer()
        change(block.attention.self, conv=d.make.conv(heads, heads, kernel, 1, groups=heads, bias=False))
        return block  # type: ignore[no-any-return]

    embeddings = d.embeddings()
    two_more_positions(d, embeddings)
    model = Parts(embeddings=embeddings, encoder=encoder_of(d.config, d.config.base, layer))
    return d.finish(name, model, cls=d.cls(embeddings))


build = counted(NystromformerConfig, describe)
