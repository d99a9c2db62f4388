"""Emu3, as `transformers/models/emu3/modeling_emu3.py` (5.23) writes its text model: Llama with dropout in layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn
from weigh.ghost.tensor import Tensor
from weigh.models.common import Cache, CausalModel
from weigh.models.config import Probability
from weigh.models.llama import DecoderConfig, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from weigh.records import dataclass

MODEL_TYPES = ("emu3_text_model",)


@dataclass(frozen=True)
class Emu3TextConfig(DecoderConfig):
    """The settings of `Emu3TextConfig` that shape memory."""

    vocab_size: int = 184622
    intermediate_size: int = 14336
    num_key_value_heads: int = 8
    attention_dropout: Probability = 0.1
    attention_bias: bool = False
    mlp_bias: bool = False


class Emu3DecoderLayer(LlamaDecoderLayer):
    def __init__(self, config: DecoderConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.dropout = nn.Dropout(config.attention_dropout)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        mask: Tensor | None,
        positions: Tensor,
        cache: Cache | None,
    ) -> Tensor:
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states, position_embeddings, mask, cache)
        hidden_states = residual + self.dropout(hidden_states)
        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = residual + self.dropout(hidden_states)
        return hidden_states


class Emu3TextModel(LlamaModel):
    layer_class = Emu3DecoderLayer


class Emu3ForCausalLM(LlamaForCausalLM):
    model_class = Emu3TextModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Emu3ForCausalLM(Emu3TextConfig.read(config, where), dtype)
