"""Apertus, as `transformers/models/apertus/modeling_apertus.py` (5.23) writes it.

Llama with normed queries and keys, and an MLP without a gate whose activation has parameters of its own (xIELU).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import Cache, CausalModel
from weigh.models.config import Keys
from weigh.models.llama import DecoderConfig, LlamaAttention, LlamaForCausalLM, LlamaModel
from weigh.records import dataclass

MODEL_TYPES = ("apertus",)

XIELU = "xielu"


@dataclass(frozen=True)
class ApertusConfig(DecoderConfig):
    """The settings of `ApertusConfig` that shape memory."""

    vocab_size: int = 131072
    intermediate_size: int = 14336
    hidden_act: str = XIELU
    attention_bias: bool = False

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """The activation may be any, and its own."""
        activation = found["hidden_act"]
        if activation == XIELU:
            found["hidden_act"] = "silu"
        super().settle(keys, found)
        found["hidden_act"] = activation


class XIELUActivation(nn.Module):
    """`_xielu_python` of `transformers/activations.py`."""

    def __init__(self, dtype: DType) -> None:
        super().__init__()
        self.alpha_p = nn.parameter((1,), dtype)
        self.alpha_n = nn.parameter((1,), dtype)
        self.beta = nn.buffer((), dtype)
        self.eps = nn.buffer((), dtype)

    def forward(self, x: Tensor) -> Tensor:
        alpha_p = ops.softplus(self.alpha_p)
        alpha_n = self.beta + ops.softplus(self.alpha_n)
        return ops.where(
            ops.greater_than(x),
            alpha_p * x * x + self.beta * x,
            (ops.expm1(ops.minimum(x, self.eps)) - x) * alpha_n + self.beta * x,
        )


class ApertusMLP(nn.Module):
    role = nn.MLP

    def __init__(self, config: DecoderConfig, dtype: DType) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, dtype)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, dtype)
        self.act_fn = XIELUActivation(dtype) if config.hidden_act == XIELU else nn.Activation(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.up_proj(x)))  # type: ignore[no-any-return]


class ApertusAttention(LlamaAttention):
    def __init__(self, config: DecoderConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__(config, dtype, layer_idx)
        self.q_norm = nn.RMSNorm(self.head_dim, dtype)
        self.k_norm = nn.RMSNorm(self.head_dim, dtype)

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys are normed head by head."""
        query_states, key_states, value_states = super().project(hidden_states)
        query_states = self.q_norm(query_states)
        key_states = self.k_norm(key_states)
        return query_states, key_states, value_states


class ApertusDecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: DecoderConfig, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = ApertusAttention(config, dtype, layer_idx)
        self.mlp = ApertusMLP(config, dtype)
        self.attention_layernorm = nn.RMSNorm(config.hidden_size, dtype)
        self.feedforward_layernorm = nn.RMSNorm(config.hidden_size, dtype)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        mask: Tensor | None,
        positions: Tensor,
        cache: Cache | None,
    ) -> Tensor:
        residual = hidden_states
        hidden_states = self.attention_layernorm(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states, position_embeddings, mask, cache)
        hidden_states = residual + hidden_states
        residual = hidden_states
        hidden_states = self.feedforward_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = residual + hidden_states
        return hidden_states


class ApertusModel(LlamaModel):
    layer_class = ApertusDecoderLayer


class ApertusForCausalLM(LlamaForCausalLM):
    model_class = ApertusModel


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return ApertusForCausalLM(ApertusConfig.read(config, where), dtype)
