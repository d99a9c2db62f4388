"""ERNIE, as `transformers/models/ernie/modeling_ernie.py` (5.23) writes it: BERT under another name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.models.bert import BertConfig, BertForMaskedLM, BertLMHeadModel, BertModel, BertPooler, counted_model
from weigh.models.common import CausalModel
from weigh.models.config import Keys, architecture
from weigh.records import dataclass


@dataclass(frozen=True)
class ErnieConfig(BertConfig):
    """The settings of `ErnieConfig` that shape memory."""

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        super().settle(keys, found)
        keys.refuse("use_task_id", "ERNIE with embeddings of tasks")


class ErnieForMaskedLM(BertForMaskedLM):
    base = "ernie"


class ErnieForCausalLM(BertLMHeadModel):
    base = "ernie"


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    name = architecture(config, ("ErnieForMaskedLM", "ErnieForCausalLM", "ErnieModel"), where)
    read = ErnieConfig.read(config, where)
    if name == "ErnieModel":
        return counted_model(BertModel(read, "", dtype), name, BertPooler(read, dtype))
    return (ErnieForMaskedLM if name == "ErnieForMaskedLM" else ErnieForCausalLM)(read, dtype, name)
