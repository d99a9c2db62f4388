"""LayoutLM: positions on a page: counted, not run.

Tensors as `transformers/models/layoutlm/modeling_layoutlm.py` (5.23) names them.
"""

from __future__ import annotations

from weigh.models.bert import BertPooler
from weigh.models.berts import Draft, EncoderConfig, change, counted, encoder_of
from weigh.models.common import CausalModel
from weigh.models.parts import Parts
from weigh.records import dataclass


@dataclass(frozen=True)
class LayoutLMConfig(EncoderConfig):
    max_2d_position_embeddings: int = 1024

    prefix = "LayoutLM"
    classes = ("ForMaskedLM",)
    base = "layoutlm"


def describe(d: Draft, name: str) -> CausalModel:
    """The model of that name."""
    rows = d.config.max_2d_position_embeddings
    tables = {f"{axis}_position_embeddings": d.make.embedding(rows, d.width) for axis in "xyhw"}
    embeddings = change(d.embeddings(), "token_type_ids", **tables)
    encoder = encoder_of(d.config, d.config.base, d.layer)
    model = Parts(embeddings=embeddings, encoder=encoder, pooler=BertPooler(d.config, d.dtype))
    return d.finish(name, model, cls=d.cls(embeddings))


build = counted(LayoutLMConfig, describe)
