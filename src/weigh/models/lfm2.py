"""LFM2, as `transformers/models/lfm2/modeling_lfm2.py` (5.23) writes it.

Short convolutions, gated before and after, in most layers; attention in the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weigh.dtypes import DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import (
    FULL,
    Attention,
    Cache,
    CausalModel,
    apply_rotary_pos_emb,
    attention_interface,
    eager_attention,
)
from weigh.models.config import Keys
from weigh.models.hybrid import CONV, HybridConfig, HybridForCausalLM, HybridModel
from weigh.models.layout import State
from weigh.models.recurrent import (
    Conv1d,
    apply_mask_to_padding_states,
    causal_conv1d_fn,
    causal_conv1d_update,
    linear_layer,
    update_conv_state,
)
from weigh.records import dataclass

MODEL_TYPES = ("lfm2",)


@dataclass(frozen=True)
class ShortConvConfig(HybridConfig):
    """What the configs of the LFMs share."""

    vocab_size: int = 65536
    num_key_value_heads: int = 8
    tie_word_embeddings: bool = True
    conv_bias: bool = False
    conv_L_cache: int = 3  # noqa: N815  upstream's name

    kinds: ClassVar[tuple[str, ...]] = (FULL, CONV)
    aliases: ClassVar[Mapping[str, str]] = {"tie_embedding": "tie_word_embeddings"}

    @property
    def states(self) -> tuple[State, ...]:
        """The last inputs of the convolution."""
        return (State("convolution", (self.hidden_size, self.conv_L_cache)),)


@dataclass(frozen=True)
class Lfm2Config(ShortConvConfig):
    """The settings of `Lfm2Config` that shape memory."""

    hidden_size: int = 2560
    intermediate_size: int = 12288
    block_multiple_of: int = 256
    block_ffn_dim_multiplier: float = 1.0
    block_auto_adjust_ff_dim: bool = True
    full_attn_idxs: tuple[int, ...] | None = None

    aliases: ClassVar[Mapping[str, str]] = {
        "tie_embedding": "tie_word_embeddings",
        "block_ff_dim": "intermediate_size",
    }

    @classmethod
    def default_type(cls, keys: Keys, found: dict[str, Any], layer_idx: int) -> str:
        attention = found["full_attn_idxs"]
        return FULL if attention is None or layer_idx in attention else CONV

    @property
    def inner_size(self) -> int:
        """The width inside the MLP."""
        inner = self.intermediate_size
        if not self.block_auto_adjust_ff_dim:
            return inner
        inner = int(2 * inner / 3)
        inner = int(self.block_ffn_dim_multiplier * inner)
        return self.block_multiple_of * ((inner + self.block_multiple_of - 1) // self.block_multiple_of)


class Lfm2MLP(nn.Module):
    role = nn.MLP

    def __init__(self, hidden_size: int, intermediate_size: int, dtype: DType) -> None:
        super().__init__()
        self.w1 = nn.Linear(hidden_size, intermediate_size, dtype)
        self.w3 = nn.Linear(hidden_size, intermediate_size, dtype)
        self.w2 = nn.Linear(intermediate_size, hidden_size, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(ops.silu(self.w1(x)) * self.w3(x))  # type: ignore[no-any-return]


class Lfm2Attention(nn.Module):
    role = nn.ATTENTION
    eager: Attention = staticmethod(eager_attention)

    def __init__(self, config: Any, dtype: DType) -> None:
        super().__init__()
        width, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.num_key_value_groups = config.head_dim, heads // kv_heads
        self.q_proj = nn.Linear(width, heads * self.head_dim, dtype)
        self.k_proj = nn.Linear(width, kv_heads * self.head_dim, dtype)
        self.v_proj = nn.Linear(width, kv_heads * self.head_dim, dtype)
        self.out_proj = nn.Linear(heads * self.head_dim, width, dtype)
        self.q_layernorm = nn.RMSNorm(self.head_dim, dtype)
        self.k_layernorm = nn.RMSNorm(self.head_dim, dtype)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: Cache | None,
    ) -> tuple[Tensor, Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)
        query_states = self.q_layernorm(self.q_proj(hidden_states).view(*hidden_shape)).transpose(1, 2)
        key_states = self.k_layernorm(self.k_proj(hidden_states).view(*hidden_shape)).transpose(1, 2)
        value_states = self.v_proj(hidden_states).view(*hidden_shape).transpose(1, 2)
        cos, sin = position_embeddings
        query_states, key_states = apply_rotary_pos_emb(query_states, key_states, cos, sin)
        if cache is not None:
            key_states, value_states = cache.update(key_states, value_states, self.path)
        attention = attention_interface(self.eager)
        groups = self.num_key_value_groups
        attn_output, attn_weights = attention(query_states, key_states, value_states, mask, 0.0, groups)
        attn_output = attn_output.reshape(*input_shape, -1).contiguous()
        output = self.out_proj(attn_output)
        return output, attn_weights


class Lfm2ShortConv(nn.Module):
    role = nn.MIXER

    def __init__(self, config: Any, dtype: DType) -> None:
        super().__init__()
        width, bias = config.hidden_size, config.conv_bias
        self.conv_kernel_size = config.conv_L_cache
        self.conv = Conv1d(width, self.conv_kernel_size, dtype, bias)
        self.in_proj = nn.Linear(width, 3 * width, dtype, bias)
        self.out_proj = nn.Linear(width, width, dtype, bias)

    def forward(self, hidden_states: Tensor, cache: Cache | None, attention_mask: Tensor | None) -> Tensor:
        seq_len = hidden_states.shape[1]
        layer = linear_layer(cache, self.path)
        hidden_states = apply_mask_to_padding_states(hidden_states, attention_mask)
        BCx = self.in_proj(hidden_states).transpose(-1, -2)
        B, C, x = BCx.split([BCx.shape[-2] // 3] * 3, -2)
        hidden_states = B * x
        conv_state = layer.keys if layer is not None and layer.has_previous_state else None
        weight, bias = self.conv.weight.squeeze(1), self.conv.bias
        if conv_state is not None and seq_len == 1:
            hidden_states = causal_conv1d_update(hidden_states, conv_state, weight, bias, None)
        else:
            if layer is not None:
                hidden_states = update_conv_state(layer, hidden_states, self.conv_kernel_size)
            hidden_states = causal_conv1d_fn(hidden_states, weight, bias, None)
            if layer is not None:
                hidden_states = hidden_states.narrow(-1, seq_len)
        y = C * hidden_states
        y = y.transpose(-1, -2).contiguous()
        y = self.out_proj(y)
        return y  # type: ignore[no-any-return]


class Lfm2DecoderLayer(nn.Module):
    role = nn.BLOCK

    def __init__(self, config: Any, dtype: DType, layer_idx: int) -> None:
        super().__init__()
        self.is_attention_layer = config.layer_types[layer_idx] != CONV
        if self.is_attention_layer:
            self.self_attn = Lfm2Attention(config, dtype)
        else:
            self.conv = Lfm2ShortConv(config, dtype)
        self.add_feed_forward(config, dtype, layer_idx)
        self.operator_norm = nn.RMSNorm(config.hidden_size, dtype)
        self.ffn_norm = nn.RMSNorm(config.hidden_size, dtype)

    def add_feed_forward(self, config: Any, dtype: DType, layer_idx: int) -> None:
        """The MLP."""
        self.feed_forward: nn.Module = Lfm2MLP(config.hidden_size, config.inner_size, dtype)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        mask: Tensor | None,
        positions: Tensor,
        cache: Cache | None,
    ) -> Tensor:
        residual = hidden_states
        if self.is_attention_layer:
            hidden_states, _ = self.self_attn(self.operator_norm(hidden_states), position_embeddings, mask, cache)
        else:
            hidden_states = self.conv(self.operator_norm(hidden_states), cache, mask)
        hidden_states = hidden_states + residual
        hidden_states = hidden_states + self.feed_forward(self.ffn_norm(hidden_states))
        return hidden_states


class Lfm2Model(HybridModel):
    layer_class: ClassVar[type[Any]] = Lfm2DecoderLayer
    norm_name = "embedding_norm"


class Lfm2ForCausalLM(HybridForCausalLM):
    model_class = Lfm2Model


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return Lfm2ForCausalLM(Lfm2Config.read(config, where), dtype)
