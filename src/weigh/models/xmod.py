"""X-MOD: adapters of every language in each MLP: counted, not run.

Tensors as `transformers/models/xmod/modeling_xmod.py` (5.23) names them.
"""

from __future__ import annotations

from weigh.ghost.nn import Module
from weigh.models.berts import Draft, EncoderConfig, change, counted, encoder_of
from weigh.models.common import CausalModel
from weigh.models.parts import Parts
from weigh.records import dataclass


@dataclass(frozen=True)
class XmodConfig(EncoderConfig):
    adapter_reduction_factor: int = 2
    adapter_layer_norm: bool = False
    languages: tuple[str, ...] = ("en_XX",)

    prefix = "Xmod"
    base = "roberta"


def describe(d: Draft, name: str) -> CausalModel:
    """The model of that name."""
    config, narrow = d.config, d.width // d.config.adapter_reduction_factor

    def layer(_: int) -> Module:
        block = d.layer()
        adapters = {
            language: Parts(dense1=d.make.linear(d.width, narrow), dense2=d.make.linear(narrow, d.width))
            for language in config.languages
        }
        norm = d.make.norm(d.width) if config.adapter_layer_norm else None
        change(block.output, adapter_layer_norm=norm, adapter_modules=Parts(**adapters))
        return block  # type: ignore[no-any-return]

    embeddings = d.roberta_embeddings()
    model = Parts(embeddings=embeddings, encoder=encoder_of(config, config.base, layer))
    return d.finish(name, model, lm_head=d.lm_head(embeddings))


build = counted(XmodConfig, describe)
