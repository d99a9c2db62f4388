"""Gemma 3 without its eyes, as `transformers/models/gemma3/modeling_gemma3.py` (5.23) writes it.

Gemma 2 that norms queries and keys instead of capping scores, with five windows to one full layer and a rotary
embedding for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import FLOAT32, DType
from weigh.ghost import nn
from weigh.ghost.tensor import Tensor
from weigh.models.common import CausalModel, cos_sin
from weigh.models.config import Keys
from weigh.models.gemma import GemmaRMSNorm
from weigh.models.gemma2 import Gemma2Config, Gemma2DecoderLayer, Gemma2ForCausalLM, Gemma2Model
from weigh.models.llama import DecoderConfig, LlamaAttention
from weigh.records import dataclass

MODEL_TYPES = ("gemma3_text",)


@dataclass(frozen=True)
class Gemma3TextConfig(Gemma2Config):
    """The settings of `Gemma3TextConfig` that shape memory."""

    vocab_size: int = 262208
    final_logit_softcapping: float | None = None
    attn_logit_softcapping: float | None = None

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """Each type of layer has its own rotary embedding."""
        super().settle(keys, found)
        for layer_type in found["layer_types"]:
            keys.rope_type(layer_type)

    @classmethod
    def sliding_window_pattern(cls, keys: Keys) -> int:
        """One layer of how many has full attention."""
        return keys.size("sliding_window_pattern", default=6)


class Gemma3RotaryEmbedding(nn.Module):
    role = nn.ROTARY

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        for layer_type in sorted(set(config.layer_types)):
            shape = ((config.head_dim + 1) // 2,)
            setattr(self, f"{layer_type}_inv_freq", nn.buffer(shape, FLOAT32))
            setattr(self, f"{layer_type}_original_inv_freq", nn.buffer(shape, FLOAT32))

    def forward(self, x: Tensor, positions: Tensor, layer_type: str) -> tuple[Tensor, Tensor]:
        return cos_sin(positions, getattr(self, f"{layer_type}_inv_freq"), x.dtype)


class Gemma3Attention(LlamaAttention):
    def __init__(self, config: DecoderConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.q_norm = GemmaRMSNorm(config.head_dim, dtype)
        self.k_norm = GemmaRMSNorm(config.head_dim, dtype)

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys are normed head by head."""
        query_states, key_states, value_states = super().project(hidden_states)
        query_states = self.q_norm(query_states)
        key_states = self.k_norm(key_states)
        return query_states, key_states, value_states


class Gemma3DecoderLayer(Gemma2DecoderLayer):
    attention_class = Gemma3Attention


class Gemma3TextModel(Gemma2Model):
    layer_class = Gemma3DecoderLayer

    def rotary(self, config: DecoderConfig) -> nn.Module:
        """One for each type of layer."""
        return Gemma3RotaryEmbedding(config)

    def position_embeddings(self, hidden_states: Tensor, positions: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Made one after the other."""
        position_embeddings = {}
        for layer_type in sorted(set(self.config.layer_types)):
            position_embeddings[layer_type] = self.rotary_emb(hidden_states, positions, layer_type)
        return position_embeddings


class Gemma3ForCausalLM(Gemma2ForCausalLM):
    model_class = Gemma3TextModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Gemma3ForCausalLM(Gemma3TextConfig.read(config, where), dtype)
