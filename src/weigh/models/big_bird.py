"""BigBird: block-sparse attention: counted, not run.

Tensors as `transformers/models/big_bird/modeling_big_bird.py` (5.23) names them.
"""

from __future__ import annotations

from weigh.ghost.nn import Module
from weigh.models.berts import Draft, EncoderConfig, change, counted, encoder_of
from weigh.models.common import CausalModel
from weigh.models.parts import Parts
from weigh.records import dataclass


@dataclass(frozen=True)
class BigBirdConfig(EncoderConfig):
    vocab_size: int = 50358
    max_position_embeddings: int = 4096
    use_bias: bool = True

    prefix = "BigBird"
    base = "bert"


def describe(d: Draft, name: str) -> CausalModel:
    """The model of that name."""

    def layer(_: int) -> Module:
        block = d.layer()
        change(
            block.attention.self, **d.make.linears(d.width, d.width, "query", "key", "value", bias=d.config.use_bias)
        )
        return block  # type: ignore[no-any-return]

    embeddings = d.embeddings()
    encoder = encoder_of(d.config, d.config.base, layer)
    model = Parts(embeddings=embeddings, encoder=encoder, pooler=d.make.linear(d.width, d.width))
    return d.finish(name, model, cls=d.cls(embeddings))


build = counted(BigBirdConfig, describe)
