"""Arcee, as `transformers/models/arcee/modeling_arcee.py` (5.23) writes it.

Llama whose MLP has no gate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel
from weigh.models.llama import LlamaConfig, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from weigh.records import dataclass

MODEL_TYPES = ("arcee",)


@dataclass(frozen=True)
class ArceeConfig(LlamaConfig):
    """The settings of `ArceeConfig` that shape memory."""

    hidden_size: int = 2560
    intermediate_size: int = 18432
    hidden_act: str = "relu2"


class ArceeMLP(nn.Module):
    role = nn.MLP

    def __init__(self, config: LlamaConfig, dtype: DType) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.up_proj = nn.Linear(width, inner, dtype, bias)
        self.down_proj = nn.Linear(inner, width, dtype, bias)
        self.act_fn = nn.Activation(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.up_proj(x)))  # type: ignore[no-any-return]


class ArceeDecoderLayer(LlamaDecoderLayer):
    mlp_class = ArceeMLP


class ArceeModel(LlamaModel):
    layer_class = ArceeDecoderLayer


class ArceeForCausalLM(LlamaForCausalLM):
    model_class = ArceeModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return ArceeForCausalLM(ArceeConfig.read(config, where), dtype)
