"""FNet: Fourier transforms in the place of attention: counted, not run.

Tensors as `transformers/models/fnet/modeling_fnet.py` (5.23) names them.
"""

from __future__ import annotations

from weigh.ghost.nn import Module
from weigh.models.bert import BertPooler
from weigh.models.berts import Draft, EncoderConfig, change, counted, encoder_of
from weigh.models.common import CausalModel
from weigh.models.parts import Parts
from weigh.records import dataclass


@dataclass(frozen=True)
class FNetConfig(EncoderConfig):
    vocab_size: int = 32000
    type_vocab_size: int = 4

    prefix = "FNet"
    classes = ("ForMaskedLM",)
    base = "fnet"


def describe(d: Draft, name: str) -> CausalModel:
    """The model of that name."""

    def layer(_: int) -> Module:
        block = d.layer()
        change(block, "attention", fourier=Parts(output=Parts(LayerNorm=d.make.norm(d.width))))
        return block  # type: ignore[no-any-return]

    embeddings = change(d.embeddings(), projection=d.make.linear(d.width, d.width))
    encoder = encoder_of(d.config, d.config.base, layer)
    model = Parts(embeddings=embeddings, encoder=encoder, pooler=BertPooler(d.config, d.dtype))
    return d.finish(name, model, cls=d.cls(embeddings))


build = counted(FNetConfig, describe)
