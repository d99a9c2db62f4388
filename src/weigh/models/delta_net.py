"""Gated delta nets, which Qwen3-Next, Qwen3.5 and OLMo Hybrid have in place of most of their attention.

A state of keys times values for every head, which decays and is corrected by each token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from weigh.dtypes import FLOAT32, DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.config import Keys
from weigh.models.hybrid import HybridConfig
from weigh.models.layout import State


@dataclass(frozen=True)
class DeltaNetConfig(HybridConfig):
    """What the configs of hybrids with gated delta nets share."""

    attention_bias: bool = False
    linear_conv_kernel_dim: int = 4
    linear_key_head_dim: int = 128
    linear_value_head_dim: int = 128
    linear_num_key_heads: int = 16
    linear_num_value_heads: int = 32

    @property
    def key_dim(self) -> int:
        """The width of all keys."""
        return self.linear_key_head_dim * self.linear_num_key_heads

    @property
    def value_dim(self) -> int:
        """The width of all values."""
        return self.linear_value_head_dim * self.linear_num_value_heads

    @property
    def conv_dim(self) -> int:
        """The channels of the convolution: queries, keys and values."""
        return 2 * self.key_dim + self.value_dim

    @property
    def states(self) -> tuple[State, ...]:
        """The last inputs of the convolution, and the state, which is computed in fp32."""
        heads, keys, values = self.linear_num_value_heads, self.linear_key_head_dim, self.linear_value_head_dim
        return (
            State("convolution", (self.conv_dim, self.linear_conv_kernel_dim)),
            State("recurrence", (heads, keys, values), FLOAT32),
        )

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """Each head of the keys serves as many of the values."""
        super().settle(keys, found)
        keys.divides(
            "linear_num_key_heads",
            found["linear_num_key_heads"],
            "linear_num_value_heads",
            found["linear_num_value_heads"],
        )


class GatedNorm(nn.Module):
    """`Qwen3NextRMSNormGated` and its copies: normed before it is gated."""

    role = nn.NORM

    def __init__(self, width: int, dtype: DType) -> None:
        super().__init__()
        self.weight = nn.parameter((width,), dtype)

    def forward(self, hidden_states: Tensor, gate: Tensor) -> Tensor:
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(FLOAT32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * ops.rsqrt(variance + 1e-6)
        hidden_states = self.weight * hidden_states.to(input_dtype)
        hidden_states = hidden_states * ops.silu(gate.to(FLOAT32))
        return hidden_states.to(input_dtype)
