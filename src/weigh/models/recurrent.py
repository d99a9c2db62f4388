"""What the families without attention share: their cache, and the convolution over time (`cache_utils.py`).

The slow path of transformers, which runs where the packages `mamba_ssm` and `causal_conv1d` are not installed.
"""

from __future__ import annotations

from collections.abc import Callable

from weigh.dims import Size
from weigh.dtypes import DType
from weigh.errors import NotModelledError
from weigh.ghost import nn, ops
from weigh.ghost.tensor import Tensor
from weigh.models.cache import Cache, CacheLayer, label
from weigh.trace.events import RECURRENT_STATE


class LinearAttentionLayer(CacheLayer):
    """The last inputs of the convolution and the state of the recurrence; neither grows, both are written in place.

    They stand where other layers have keys and values.
    """

    __slots__ = ("has_previous_state",)

    purpose = RECURRENT_STATE
    grows = False

    def __init__(self) -> None:
        super().__init__(None)
        self.has_previous_state = False


def linear_layer(cache: Cache | None, path: str) -> LinearAttentionLayer | None:
    """The cache of the mixer at `path`, made when it is first asked for."""
    if cache is None:
        return None
    layer = cache.layers.get(path)
    if layer is None:
        if cache.rollback:
            raise NotModelledError("assisted decoding of a model with recurrent layers", where=path)
        layer = cache.layers[path] = LinearAttentionLayer()
    assert isinstance(layer, LinearAttentionLayer)
    return layer


def update_conv_state(layer: LinearAttentionLayer, conv_states: Tensor, conv_kernel_size: int) -> Tensor:
    """Keep the last inputs (batch, channels, kernel); returns all that the convolution may look at."""
    if layer.keys is None:
        layer.keys = label(ops.zeros((*conv_states.shape[:-1], conv_kernel_size), conv_states.dtype), RECURRENT_STATE)
    if layer.has_previous_state:
        return ops.cat([layer.keys, conv_states], -1)
    layer.has_previous_state = True
    if conv_states.shape[-1] < conv_kernel_size:
        return ops.pad(conv_states, conv_kernel_size - conv_states.shape[-1])
    return conv_states


def update_recurrent_state(layer: LinearAttentionLayer, recurrent_states: Tensor) -> None:
    """Copy the state into the cache."""
    if layer.values is None:
        layer.values = label(ops.zeros_as(recurrent_states), RECURRENT_STATE)


class Conv1d(nn.Module):
    """`nn.Conv1d` with a filter for every channel: weight (channels, 1, kernel)."""

    def __init__(self, channels: int, kernel: int, dtype: DType, bias: bool) -> None:
        super().__init__()
        self.weight = nn.parameter((channels, 1, kernel), dtype)
        self.bias = nn.parameter((channels,), dtype) if bias else None


Function = Callable[[Tensor], Tensor]


def causal_conv1d_update(
    hidden_states: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None, activation: Function | None
) -> Tensor:
    """One more token, behind the inputs that the cache has."""
    seq_len = hidden_states.shape[-1]
    hidden_states_new = ops.cat([conv_state, hidden_states], -1).to(weight.dtype)
    out = ops.conv1d(hidden_states_new, weight.unsqueeze(1), bias)
    out = out.narrow(-1, seq_len)
    if activation is not None:
        out = activation(out)
    return out.to(hidden_states.dtype)


def causal_conv1d_fn(hidden_states: Tensor, weight: Tensor, bias: Tensor | None, activation: Function | None) -> Tensor:
    """(batch, channels, length), padded on both sides and cut to the length."""
    seq_len: Size = hidden_states.shape[-1]
    padding = weight.shape[-1] - 1
    assert isinstance(padding, int)
    out = ops.conv1d(hidden_states.to(weight.dtype), weight.unsqueeze(1), bias, padding).narrow(-1, seq_len)
    if activation is not None:
        out = activation(out)
    return out.to(hidden_states.dtype)


def apply_mask_to_padding_states(hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Zero where a padding mask (batch, length) is."""
    if attention_mask is not None:
        dtype = hidden_states.dtype
        hidden_states = (hidden_states * attention_mask.unsqueeze(-1)).to(dtype)
    return hidden_states
