"""UMT5, as `transformers/models/umt5/modeling_umt5.py` (5.23) writes it: T5 in which every layer has its own bias."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.dtypes import FLOAT16, INT64, DType
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.common import Cache, CausalModel, ModuleList
from weigh.models.mt5 import MT5Config
from weigh.models.t5 import (
    T5Attention,
    T5Block,
    T5Config,
    T5ForConditionalGeneration,
    T5LayerFF,
    T5LayerNorm,
    T5Stack,
    build_as,
    clamp_infinities,
)
from weigh.records import dataclass


@dataclass(frozen=True)
class UMT5Config(MT5Config):
    """The settings of `UMT5Config` that shape memory."""

    scale = True


class UMT5Attention(T5Attention):
    bias_wants_gradient = False

    def _relative_position_bucket(self, relative_position: Tensor) -> Tensor:
        relative_buckets: Tensor | None = None
        if not self.is_decoder:
            relative_buckets = ops.to(ops.greater_than(relative_position), INT64) * 16 + 0
            relative_position = ops.absolute(relative_position)
        else:
            relative_position = -ops.minimum(relative_position, ops.zeros_as(relative_position))
        is_small = ops.less_than(relative_position)
        log_ratio = ops.log(relative_position.float() / 8) / 2.77
        log_ratio = log_ratio * 8
        relative_position_if_large = log_ratio.to(INT64) + 8
        relative_position_if_large = ops.minimum(relative_position_if_large, ops.full_like(relative_position_if_large))
        buckets = ops.where(is_small, relative_position, relative_position_if_large)
        return ops.add_(relative_buckets, buckets) if relative_buckets is not None else buckets + 0


class UMT5LayerAttention(nn.Module):
    """`UMT5LayerSelfAttention` and `UMT5LayerCrossAttention`."""

    def __init__(self, config: T5Config, name: str, is_decoder: bool, dtype: DType) -> None:
        super().__init__()
        own = name == "SelfAttention"
        self.attention_name = name
        setattr(self, name, UMT5Attention(config, is_decoder, own, is_decoder and own, dtype))
        self.layer_norm = T5LayerNorm(config.d_model, dtype)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(
        self, hidden_states: Tensor, mask: Tensor | None, key_value_states: Tensor | None, cache: Cache | None
    ) -> tuple[Tensor, Tensor | None]:
        normed_hidden_states = self.layer_norm(hidden_states)
        attention_output = self.attend(normed_hidden_states, mask, key_value_states, cache)
        hidden_states = hidden_states + self.dropout(attention_output[0])
        return hidden_states, attention_output[1]

    def attend(self, *args: Any) -> tuple[Tensor, Tensor | None]:
        """The attention, whose position bias dies when it is done."""
        hidden_states, mask, key_value_states, cache = args
        attention = getattr(self, self.attention_name)
        attn_output, _, attn_weights = attention(hidden_states, mask, key_value_states, None, cache)
        return attn_output, attn_weights


class UMT5Block(T5Block):
    positional = 3

    def __init__(self, config: T5Config, is_decoder: bool, has_relative_attention_bias: bool, dtype: DType) -> None:
        nn.Module.__init__(self)
        self.is_decoder = is_decoder
        parts: list[nn.Module] = [UMT5LayerAttention(config, "SelfAttention", is_decoder, dtype)]
        if is_decoder:
            parts.append(UMT5LayerAttention(config, "EncDecAttention", is_decoder, dtype))
        parts.append(T5LayerFF(config, dtype))
        self.layer = ModuleList(parts)

    def forward(  # type: ignore[override]  # the blocks of UMT5 hand on no biases
        self,
        hidden_states: Tensor,
        mask: Tensor | None,
        encoder_hidden_states: Tensor | None,
        encoder_attention_mask: Tensor | None,
        cache: Cache | None,
    ) -> Tensor:
        hidden_states, _ = self.layer[0](hidden_states, mask, None, cache)
        clamp_value = None
        if hidden_states.dtype is FLOAT16:
            hidden_states, clamp_value = clamp_infinities(hidden_states)
        if self.is_decoder and encoder_hidden_states is not None:
            hidden_states, _ = self.layer[1](hidden_states, encoder_attention_mask, encoder_hidden_states, cache)
            if hidden_states.dtype is FLOAT16:
                hidden_states, clamp_value = clamp_infinities(hidden_states)
        hidden_states = self.layer[-1](hidden_states)
        if hidden_states.dtype is FLOAT16:
            hidden_states, clamp_value = clamp_infinities(hidden_states)
        del clamp_value
        return hidden_states


class UMT5Stack(T5Stack):
    block_class = UMT5Block
    lead = 0

    def forward(
        self,
        input_ids: Tensor,
        encoder_hidden_states: Tensor | None = None,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        inputs_embeds = self.embed_tokens(input_ids)
        causal_mask, encoder_extended_attention_mask = self.masks(inputs_embeds, cache, attention_mask)
        hidden_states = self.dropout(inputs_embeds)
        for layer_module in self.block:
            hidden_states = layer_module(
                hidden_states, causal_mask, encoder_hidden_states, encoder_extended_attention_mask, cache
            )
        if cache is not None:
            cache.advance(input_ids.shape[1])
        hidden_states = self.final_layer_norm(hidden_states)
        hidden_states = self.dropout(hidden_states)
        return hidden_states  # type: ignore[no-any-return]


class UMT5ForConditionalGeneration(T5ForConditionalGeneration):
    stack_class = UMT5Stack


def build(config: Mapping[str, Any], dtype: DType, where: str = "config") -> CausalModel:
    """The model of a `config.json`, every parameter in `dtype`."""
    return build_as(UMT5Config, UMT5ForConditionalGeneration, config, dtype, where, "UMT5")
