"""TAPAS: a table of types for each way to place a cell: counted, not run.

Tensors as `transformers/models/tapas/modeling_tapas.py` (5.23) names them.
"""

from __future__ import annotations

from weigh.models.berts import Draft, EncoderConfig, change, counted, encoder_of
from weigh.models.common import CausalModel
from weigh.models.parts import Parts
from weigh.records import dataclass


@dataclass(frozen=True)
class TapasConfig(EncoderConfig):
    max_position_embeddings: int = 1024
    type_vocab_sizes: tuple[int, ...] = (3, 256, 256, 2, 256, 256, 10)

    prefix = "Tapas"
    classes = ("ForMaskedLM",)
    base = "tapas"


def describe(d: Draft, name: str) -> CausalModel:
    """The model of that name."""
    tables = {
        f"token_type_embeddings_{i}": d.make.embedding(rows, d.width)
        for i, rows in enumerate(d.config.type_vocab_sizes)
    }
    embeddings = change(d.embeddings(), "token_type_embeddings", "position_ids", "token_type_ids", **tables)
    model = Parts(embeddings=embeddings, encoder=encoder_of(d.config, d.config.base, d.layer))
    return d.finish(name, model, cls=d.cls(embeddings))


build = counted(TapasConfig, describe)
