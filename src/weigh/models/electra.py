"""ELECTRA's generator, as `transformers/models/electra/modeling_electra.py` (5.23) writes it.

BERT whose embeddings may be narrower than its layers. The discriminator is counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.ghost.tensor import Tensor
from weigh.models.bert import BertConfig, BertForMaskedLM, BertLMBase, BertLMHeadModel, BertModel, counted_model
from weigh.models.common import CausalModel
from weigh.models.config import architecture
from weigh.models.parts import Counted, HeadParts, Make
from weigh.records import dataclass


@dataclass(frozen=True)
class ElectraConfig(BertConfig):
    """The settings of `ElectraConfig` that shape memory."""

    hidden_size: int = 256
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    embedding_size: int = 128

    @property
    def embedding_width(self) -> int:
        return self.embedding_size


class ElectraGeneratorPredictions(nn.Module):
    role = nn.HEAD

    def __init__(self, config: ElectraConfig, dtype: DType) -> None:
        super().__init__()
        self.activation = nn.Activation("gelu")
        self.LayerNorm = nn.LayerNorm(config.embedding_size, dtype)
        self.dense = nn.Linear(config.hidden_size, config.embedding_size, dtype, bias=True)

    def forward(self, generator_hidden_states: Tensor) -> Tensor:
        hidden_states = self.dense(generator_hidden_states)
        hidden_states = self.activation(hidden_states)
        hidden_states = self.LayerNorm(hidden_states)
        return hidden_states  # type: ignore[no-any-return]


class _WithHead(BertLMBase):
    base = "electra"

    def add_parts(self, model: BertModel, dtype: DType) -> None:
        config = self.config
        assert isinstance(config, ElectraConfig)
        self.electra = model
        self.generator_predictions = ElectraGeneratorPredictions(config, dtype)
        tied_to = model.embeddings.word_embeddings if config.tie_word_embeddings else None
        self.generator_lm_head = nn.Head(tied_to, config.embedding_size, config.vocab_size, dtype, bias=True)

    def head(self, hidden_states: Tensor) -> Tensor:
        prediction_scores = self.generator_predictions(hidden_states)
        return self.generator_lm_head(prediction_scores)  # type: ignore[no-any-return]


class ElectraForMaskedLM(_WithHead, BertForMaskedLM):
    pass


class ElectraForCausalLM(_WithHead, BertLMHeadModel):
    pass


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    known = ("ElectraForMaskedLM", "ElectraForCausalLM", "ElectraModel", "ElectraForPreTraining")
    name = architecture(config, known, where)
    read = ElectraConfig.read(config, where)
    if name in known[:2]:
        return (ElectraForMaskedLM if name == known[0] else ElectraForCausalLM)(read, dtype, name)
    if name == "ElectraModel":
        return counted_model(BertModel(read, "", dtype), name, None)
    make = Make(dtype)
    predictions = HeadParts(
        dense=make.linear(read.hidden_size, read.hidden_size), dense_prediction=make.linear(read.hidden_size, 1)
    )
    return Counted(name, (), electra=BertModel(read, "electra", dtype), discriminator_predictions=predictions)
