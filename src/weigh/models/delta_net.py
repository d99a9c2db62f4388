"""Gated delta nets, which Qwen3-Next, Qwen3.5 and OLMo Hybrid have in place of most of their attention.

A state of keys times values for every head, which decays and is corrected by each token. As upstream runs them where
the package `fla` is not installed: in chunks of 64 tokens, every chunk's products in fp32.

Shapes: B batch, T length, K heads of keys, V heads of values, C chunks.
"""

from __future__ import annotations

from typing import Any

from weigh.dtypes import BOOL, FLOAT32, DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.config import Keys
from weigh.models.hybrid import HybridConfig
from weigh.models.layout import State
from weigh.models.mamba import token_count
from weigh.records import dataclass


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


CHUNK = 64


def l2norm(x: Tensor) -> Tensor:
    """Every vector with length one."""
    inv_norm = ops.rsqrt(ops.sum(x * x, (-1,), keepdim=True) + 1e-6)
    return x * inv_norm


def _share_keys(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Every head of the keys repeated for the heads of the values that it serves."""
    repeats = value.shape[2] // key.shape[2]
    assert isinstance(repeats, int)
    if repeats > 1:
        query = ops.repeat_along(query, 2, repeats)
        key = ops.repeat_along(key, 2, repeats)
    return query, key


def chunk_gated_delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    output_final_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """The whole sequence: (B, T, V, width), and the last state (B, V, key width, value width)."""
    initial_dtype = query.dtype
    batch_size, sequence_length, _, k_head_dim = key.shape
    num_v_heads, v_head_dim = value.shape[-2:]
    decay = g
    query, key = _share_keys(query, key, value)
    query, key, value, beta, decay = [
        ops.to_contiguous(x.transpose(1, 2), FLOAT32) for x in (query, key, value, beta, decay)
    ]
    query = l2norm(query)
    key = l2norm(key)
    query = query * 0.125
    pad_size = (CHUNK - sequence_length % CHUNK) % CHUNK
    query, key, value = [ops.pad_dimension(x, -2, pad_size) for x in (query, key, value)]
    beta, decay = [ops.pad_dimension(x, -1, pad_size) for x in (beta, decay)]
    num_chunks = (sequence_length + pad_size) // CHUNK
    v_beta = value * beta.unsqueeze(-1)
    k_beta = key * beta.unsqueeze(-1)
    query, key, k_beta, v_beta = [
        x.reshape(*x.shape[:2], num_chunks, CHUNK, x.shape[-1]) for x in (query, key, k_beta, v_beta)
    ]
    decay = decay.reshape(*decay.shape[:2], num_chunks, CHUNK)
    strictly_upper_mask = ops.triu(ops.ones((CHUNK, CHUNK), BOOL))
    cum_decay = ops.running_sum(decay, 3)
    pairwise_decay = cum_decay.unsqueeze(4) - cum_decay.unsqueeze(3)
    pairwise_decay = ops.masked_fill_value(pairwise_decay, strictly_upper_mask)
    pairwise_decay = ops.exp(pairwise_decay)
    ut_system = k_beta.matmul(key.transpose(-1, -2)) * pairwise_decay
    intra_chunk_attn = query.matmul(key.transpose(-1, -2)) * pairwise_decay
    decayed_k_beta = k_beta * ops.exp(cum_decay).unsqueeze(-1)
    new_values = ops.solve_triangular(ut_system, v_beta)
    k_cumdecay = ops.solve_triangular(ut_system, decayed_k_beta)
    if initial_state is None:
        last_recurrent_state = ops.zeros((batch_size, num_v_heads, k_head_dim, v_head_dim), new_values.dtype)
    else:
        last_recurrent_state = initial_state.to(new_values.dtype)
    core_attn_out = ops.zeros_as(new_values.detach())
    query = query * ops.exp(cum_decay).unsqueeze(-1)
    key = key * ops.exp(cum_decay.narrow(-1, 1) - cum_decay).unsqueeze(-1)
    chunk_decay = ops.exp(ops.select(cum_decay, -1)).unsqueeze(-1).unsqueeze(-1)
    for _ in range(token_count(num_chunks)):
        v_new = ops.select(new_values, 2) - ops.select(k_cumdecay, 2).matmul(last_recurrent_state)
        inter_chunk_attn = ops.select(query, 2).matmul(last_recurrent_state)
        chunk = inter_chunk_attn + ops.select(intra_chunk_attn, 2).matmul(v_new)
        core_attn_out = ops.copy_select(core_attn_out, chunk, 2)
        del chunk
        last_recurrent_state = last_recurrent_state * ops.select(chunk_decay, 2) + ops.select(key, 2).transpose(
            -1, -2
        ).matmul(v_new)
    final_state = last_recurrent_state if output_final_state else None
    del last_recurrent_state
    core_attn_out = core_attn_out.reshape(batch_size, num_v_heads, num_chunks * CHUNK, v_head_dim)
    if pad_size > 0:
        core_attn_out = core_attn_out.narrow(2, sequence_length)
    core_attn_out = ops.to_contiguous(core_attn_out.transpose(1, 2), initial_dtype)
    return core_attn_out, final_state


def recurrent_gated_delta_rule(
    query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, initial_state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token: (B, 1, V, width), and the new state."""
    initial_dtype = query.dtype
    decay = g
    query, key = _share_keys(query, key, value)
    query, key, value, beta, decay = [
        ops.to_contiguous(x.transpose(1, 2), FLOAT32) for x in (query, key, value, beta, decay)
    ]
    query = l2norm(query)
    key = l2norm(key)
    query = query / 8.0
    last_recurrent_state = initial_state.to(value.dtype)
    core_attn_out = ops.zeros_as(value)
    q_t, k_t, v_t = ops.select(query, 2), ops.select(key, 2), ops.select(value, 2)
    decay_t = ops.exp(ops.select(decay, 2)).unsqueeze(-1).unsqueeze(-1)
    last_recurrent_state = last_recurrent_state * decay_t
    beta_t = ops.select(beta, 2).unsqueeze(-1)
    kv_mem = ops.sum(last_recurrent_state * k_t.unsqueeze(-1), (-2,))
    delta = (v_t - kv_mem) * beta_t
    last_recurrent_state = last_recurrent_state + k_t.unsqueeze(-1) * delta.unsqueeze(-2)
    token = ops.sum(last_recurrent_state * q_t.unsqueeze(-1), (-2,))
    core_attn_out = ops.copy_select(core_attn_out, token, 2)
    del token
    core_attn_out = core_attn_out.transpose(1, 2).contiguous().to(initial_dtype)
    return core_attn_out, last_recurrent_state
