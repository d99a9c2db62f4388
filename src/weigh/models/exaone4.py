"""EXAONE 4, as `transformers/models/exaone4/modeling_exaone4.py` (5.23) writes it.

OLMo 2 that norms every query and key, with three sliding windows to one full layer; where there are windows, the full
layers know no positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.errors import InputError
from weigh.ghost import nn
from weigh.ghost.tensor import Tensor
from weigh.models.common import FULL, SLIDING, CausalModel
from weigh.models.config import DERIVED, Keys
from weigh.models.llama import DecoderConfig, LlamaAttention, LlamaForCausalLM
from weigh.models.olmo2 import Olmo2DecoderLayer
from weigh.models.qwen2 import Qwen2Model
from weigh.records import dataclass

MODEL_TYPES = ("exaone4",)


@dataclass(frozen=True)
class Exaone4Config(DecoderConfig):
    """The settings of `Exaone4Config` that shape memory."""

    vocab_size: int = 102400
    intermediate_size: int = 16384
    num_key_value_heads: int = 32
    sliding_window: int | None = 4096
    layer_types: tuple[str, ...] = DERIVED

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """Every fourth layer has full attention."""
        super().settle(keys, found)
        if found["layer_types"] is None:
            if found["sliding_window"] is None:
                where = f"{keys.where}: layer_types"
                raise InputError("is missing", where=where, hint="Without sliding_window, give every layer's type.")
            every = keys.size("sliding_window_pattern", default=4)
            layers = range(found["num_hidden_layers"])
            found["layer_types"] = tuple(SLIDING if (i + 1) % every else FULL for i in layers)
        keys.check_layer_types(found)


class Exaone4Attention(LlamaAttention):
    def __init__(self, config: DecoderConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.use_rope = config.sliding_window is None or self.sliding_window is not None
        self.q_norm = nn.RMSNorm(self.head_dim, dtype)
        self.k_norm = nn.RMSNorm(self.head_dim, dtype)

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys are normed head by head."""
        query_states, key_states, value_states = super().project(hidden_states)
        query_states = self.q_norm(query_states)
        key_states = self.k_norm(key_states)
        return query_states, key_states, value_states

    def rotate(self, query: Tensor, key: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Where the layer knows positions."""
        return super().rotate(query, key, position_embeddings) if self.use_rope else (query, key)


class Exaone4DecoderLayer(Olmo2DecoderLayer):
    attention_class = Exaone4Attention
    norm_class = nn.RMSNorm


class Exaone4Model(Qwen2Model):
    layer_class = Exaone4DecoderLayer


class Exaone4ForCausalLM(LlamaForCausalLM):
    model_class = Exaone4Model


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Exaone4ForCausalLM(Exaone4Config.read(config, where), dtype)
