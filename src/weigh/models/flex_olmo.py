"""FlexOlmo, as `transformers/models/flex_olmo/modeling_flex_olmo.py` (5.23) writes it: OLMo 2 with OLMoE's experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.models.common import CausalModel
from weigh.models.llama import LlamaForCausalLM
from weigh.models.olmo2 import Olmo2DecoderLayer, Olmo2Model
from weigh.models.olmoe import OlmoeSparseMoeBlock
from weigh.models.sparse import MoeConfig
from weigh.records import dataclass

MODEL_TYPES = ("flex_olmo",)


@dataclass(frozen=True)
class FlexOlmoConfig(MoeConfig):
    """The settings of `FlexOlmoConfig` that shape memory."""

    vocab_size: int = 100352
    attention_bias: bool = False
    num_experts_per_tok: int = 5
    num_experts: int = 7
    norm_topk_prob: bool = False

    aliases: ClassVar[Mapping[str, str]] = {"num_local_experts": "num_experts"}


class FlexOlmoDecoderLayer(Olmo2DecoderLayer):
    mlp_class: ClassVar[type[Any]] = OlmoeSparseMoeBlock


class FlexOlmoModel(Olmo2Model):
    layer_class = FlexOlmoDecoderLayer


class FlexOlmoForCausalLM(LlamaForCausalLM):
    model_class = FlexOlmoModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return FlexOlmoForCausalLM(FlexOlmoConfig.read(config, where), dtype)
