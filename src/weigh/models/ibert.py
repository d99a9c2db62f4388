"""I-BERT: RoBERTa for whole numbers: counted, not run.

Tensors as `transformers/models/ibert/modeling_ibert.py` (5.23) names them.
"""

from __future__ import annotations

from weigh.models.berts import Draft, EncoderConfig, change, counted, encoder_of
from weigh.models.common import CausalModel
from weigh.models.parts import Parts
from weigh.records import dataclass


@dataclass(frozen=True)
class IBertConfig(EncoderConfig):
    prefix = "IBert"
    classes = ("ForMaskedLM",)
    base = "ibert"


def describe(d: Draft, name: str) -> CausalModel:
    """The model of that name."""
    embeddings = change(d.roberta_embeddings(), "token_type_ids")
    model = Parts(embeddings=embeddings, encoder=encoder_of(d.config, d.config.base, d.layer))
    return d.finish(name, model, lm_head=d.lm_head(embeddings))


build = counted(IBertConfig, describe)
