"""RoBERTa, as `transformers/models/roberta/modeling_roberta.py` (5.23) writes it: its positions skip padding.

XLM-RoBERTa, CamemBERT and data2vec-text are copies of it under other names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.bert import (
    BertConfig,
    BertEmbeddings,
    BertForMaskedLM,
    BertLMBase,
    BertLMHeadModel,
    BertModel,
    BertPooler,
    counted_model,
    position_ids_from_input_ids,
)
from weigh.models.common import Cache, CausalModel
from weigh.models.config import architecture
from weigh.records import dataclass


@dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """The settings of `RobertaConfig` that shape memory."""

    vocab_size: int = 50265


class RobertaEmbeddings(BertEmbeddings):
    def add_tables(self, config: BertConfig, width: int, dtype: DType) -> None:
        self.word_embeddings = nn.Embedding(config.vocab_size, width, dtype)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width, dtype)
        self.LayerNorm = nn.LayerNorm(width, dtype)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width, dtype)

    def number(self, input_ids: Tensor, cache: Cache | None) -> Tensor:
        return position_ids_from_input_ids(input_ids)


class RobertaModel(BertModel):
    embeddings_class = RobertaEmbeddings


class RobertaLMHead(nn.Module):
    """Its bias is the decoder's where the embeddings are tied, else a parameter that nothing reads."""

    role = nn.HEAD

    def __init__(self, config: BertConfig, embedding: nn.Embedding, dtype: DType) -> None:
        super().__init__()
        tied = config.tie_word_embeddings
        self.bias = nn.parameter((config.vocab_size,), dtype)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, dtype, bias=True)
        self.layer_norm = nn.LayerNorm(config.hidden_size, dtype)
        self.decoder = nn.Head(embedding if tied else None, config.hidden_size, config.vocab_size, dtype, not tied)
        if tied:
            self.decoder.bias = self.bias

    def forward(self, features: Tensor) -> Tensor:
        x = self.dense(features)
        x = ops.gelu(x)
        x = self.layer_norm(x)
        x = self.decoder(x)
        return x  # type: ignore[no-any-return]


class _WithHead(BertLMBase):
    base = "roberta"
    model_class = RobertaModel
    head_first: ClassVar[bool] = False
    """The head stands before the model, and gives the tied weight its name."""

    def add_parts(self, model: BertModel, dtype: DType) -> None:
        lm_head = RobertaLMHead(self.config, model.embeddings.word_embeddings, dtype)
        if self.head_first:
            self.lm_head = lm_head
        setattr(self, self.base, model)
        self.lm_head = lm_head

    def head(self, hidden_states: Tensor) -> Tensor:
        return self.lm_head(hidden_states)  # type: ignore[no-any-return]


class RobertaForMaskedLM(_WithHead, BertForMaskedLM):
    pass


class RobertaForCausalLM(_WithHead, BertLMHeadModel):
    pass


class _HeadFirst(_WithHead):
    head_first = True


class CamembertForMaskedLM(_HeadFirst, BertForMaskedLM):
    pass


class CamembertForCausalLM(_HeadFirst, BertLMHeadModel):
    pass


class Data2VecTextForMaskedLM(_WithHead, BertForMaskedLM):
    base = "data2vec_text"


class Data2VecTextForCausalLM(_WithHead, BertLMHeadModel):
    base = "data2vec_text"


CLASSES: dict[str, tuple[type[BertConfig], tuple[type[BertLMBase], ...]]] = {
    "roberta": (RobertaConfig, (RobertaForMaskedLM, RobertaForCausalLM)),
    "xlm-roberta": (BertConfig, (CamembertForMaskedLM, CamembertForCausalLM)),
    "camembert": (BertConfig, (CamembertForMaskedLM, CamembertForCausalLM)),
    "data2vec-text": (BertConfig, (Data2VecTextForMaskedLM, Data2VecTextForCausalLM)),
}
"""`model_type` -> its settings, and its classes with a head."""
PREFIXES = {
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "camembert": "Camembert",
    "data2vec-text": "Data2VecText",
}
"""`model_type` -> the beginning of upstream's class names."""


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    settings, classes = CLASSES[config["model_type"]]
    prefix = PREFIXES[config["model_type"]]
    known = dict(zip((f"{prefix}ForMaskedLM", f"{prefix}ForCausalLM"), classes, strict=True))
    name = architecture(config, (*known, f"{prefix}Model"), where)
    read = settings.read(config, where)
    if name in known:
        return known[name](read, dtype, name)
    return counted_model(RobertaModel(read, "", dtype), name, BertPooler(read, dtype))
