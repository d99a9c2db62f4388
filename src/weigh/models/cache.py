"""The keys and values that a generating model keeps: transformers' `cache_utils.py` (5.23).

A layer that looks at everything keeps everything; a layer with a sliding window keeps the window. `length` counts the
tokens that the model has seen, whatever its layers still keep of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from weigh.dims import Size, minimum
from weigh.dtypes import INT64
from weigh.errors import NotModelledError
from weigh.ghost import ops
from weigh.ghost.state import inside_unit, state
from weigh.ghost.tensor import Tensor
from weigh.trace.events import KV_CACHE


class CacheLayer:
    """The keys and values of one layer (or of all the layers it stands for)."""

    __slots__ = ("counter", "keys", "unit", "values", "window")

    purpose: ClassVar[str] = KV_CACHE
    """What its tensors are for."""
    grows: ClassVar[bool] = True
    """Every token adds to it, up to the window."""

    def __init__(self, window: int | None) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.unit = state.ledger.unit
        self.window = window
        """How many tokens, itself included, a token sees; None: all of them."""
        self.counter: Tensor | None = None
        """The eight bytes that a static layer counts in, or in which a sliding one has its window's size."""


class CrossLayer(CacheLayer):
    """The keys and values of the encoder's output, which do not change."""

    __slots__ = ()
    grows = False


class Cache:
    """`DynamicCache`: grows by concatenation, a new tensor for every step; with an encoder, `EncoderDecoderCache`."""

    compileable = False
    dense_masks = False
    """`generate` makes the masks before it calls the model, every row of them in memory."""

    def __init__(self, rollback: bool = False) -> None:
        self.layers: dict[str, CacheLayer] = {}
        self.length: Size = 0
        self.rollback = rollback
        """Tokens may have to be taken back (assisted decoding)."""
        self.encoder_output: Tensor | None = None
        """What `generate` keeps for the decoder's cross-attention."""
        self.encoder_mask: Tensor | None = None
        """The mask of ones that came with the encoder's input."""

    def layer(self, path: str, window: int | None) -> CacheLayer:
        """The cache of the attention at `path`."""
        if path not in self.layers:
            if window is not None and self.rollback:
                raise NotModelledError("assisted decoding of a model with sliding windows", where=path)
            self.layers[path] = CacheLayer(window)
        return self.layers[path]

    def update(
        self, keys: Tensor, values: Tensor, path: str, sliding_window: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Append new keys and values (batch, heads, new, width); returns all that the new tokens may look at."""
        layer = self.layer(path, sliding_window)
        if sliding_window is None:
            layer.keys = label(_append(layer.keys, keys))
            layer.values = label(_append(layer.values, values))
            return layer.keys, layer.values
        if layer.keys is None:
            layer.counter = label(ops.scalar_tensor(INT64))
        full_key_states = label(_append(layer.keys, keys))
        full_value_states = label(_append(layer.values, values))
        layer.keys = _latest(full_key_states, sliding_window)
        layer.values = _latest(full_value_states, sliding_window)
        return full_key_states, full_value_states

    def crossed(self, path: str) -> tuple[Tensor, Tensor] | None:
        """The cross-attention's keys and values, once they are there."""
        layer = self.layers.get(path)
        if layer is None or layer.keys is None or layer.values is None:
            return None
        return layer.keys, layer.values

    def cross(self, keys: Tensor, values: Tensor, path: str) -> tuple[Tensor, Tensor]:
        """Keep the keys and values (batch, heads, source, width) of the encoder's output."""
        layer = self.layers[path] = CrossLayer(None)
        layer.keys = label(_append(None, keys))
        layer.values = label(_append(None, values))
        return layer.keys, layer.values

    def advance(self, length: Size) -> None:
        """`length` more positions are in the cache."""
        self.length = self.length + length

    def offset(self, window: int | None) -> Tensor | int:
        """What is added to a new token's place to get its position: a number, whose value no byte depends on."""
        return 0

    def mask_length(self, query_length: Size, window: int | None = None) -> Size:
        """How many keys a query sees."""
        if window is not None and self.length >= window:
            return window - 1 + query_length
        return self.length + query_length

    def crop(self, length: Size) -> None:
        """Forget what is beyond `length`: views of the same storages."""
        if self.length == length:
            return
        self.length = length
        self.rewrite(lambda x: x.narrow(-2, length))

    def fill(self, length: Size) -> None:
        """Pretend that `length` tokens were seen one by one: every layer holds what it would hold then."""
        self.length = length
        for layer in filter(lambda layer: layer.grows, self.layers.values()):
            self._change(layer, lambda x, window=layer.window: _grown(x, length, window))  # type: ignore[misc]

    def rewrite(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace the keys and values of every layer in turn (reorder, repeat, crop), cross-attentions last."""
        for layer in sorted(self.layers.values(), key=lambda layer: isinstance(layer, CrossLayer)):
            self._change(layer, change)

    def _change(self, layer: CacheLayer, change: Callable[[Tensor], Tensor]) -> None:
        with inside_unit(layer.unit):
            if layer.keys is not None:
                layer.keys = label(change(layer.keys), layer.purpose)
            if layer.values is not None:
                layer.values = label(change(layer.values), layer.purpose)


class StaticCache(Cache):
    """`StaticCache`: full length from the start (or the window's, if that is shorter), written in place."""

    compileable = True

    def __init__(self, max_length: Size, dense_masks: bool = False) -> None:
        super().__init__()
        self.max_length = max_length
        self.dense_masks = dense_masks

    def update(
        self, keys: Tensor, values: Tensor, path: str, sliding_window: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Write new keys and values; returns the whole buffers, or more where a window is overrun."""
        layer = self.layer(path, sliding_window)
        length = self._room(sliding_window)
        if layer.keys is None or layer.values is None or layer.counter is None:
            batch, heads, _, width = keys.shape
            layer.keys = label(ops.zeros((batch, heads, length, width), keys.dtype))
            layer.values = label(ops.zeros((batch, heads, length, values.shape[-1]), values.dtype))
            layer.counter = label(ops.scalar_tensor(INT64))
        if sliding_window is None or self.length + keys.shape[-2] <= length:
            position = ops.arange(keys.shape[-2])
            position = position + layer.counter
            return ops.index_copy_(layer.keys, position, keys), ops.index_copy_(layer.values, position, values)
        if self.length >= length and keys.shape[-2] == 1:
            return _roll_in(layer.keys, layer.values)
        if self.length == 0:
            return keys, values  # `self.keys.copy_` of the last of them
        kept = minimum(self.length, length - 1)
        return _append(layer.keys.narrow(-2, kept), keys), _append(layer.values.narrow(-2, kept), values)

    def _room(self, window: int | None) -> Size:
        return self.max_length if window is None else minimum(window, self.max_length)

    def offset(self, window: int | None) -> Tensor | int:
        """A full layer counts its tokens on the device, a sliding one in a number."""
        found = next((x for x in self.layers.values() if x.window == window), None)
        return 0 if window is not None or found is None or found.counter is None else found.counter

    def mask_length(self, query_length: Size, window: int | None = None) -> Size:
        """How many keys a query sees."""
        room = self._room(window)
        if window is None:
            return room
        if self.length >= room:
            return room + query_length - 1
        if self.length + query_length > room:
            return self.length + query_length
        return room

    def fill(self, length: Size) -> None:
        """The buffers are what they are."""
        self.length = length


def _append(kept: Tensor | None, new: Tensor) -> Tensor:
    """`torch.cat` of what is kept (at first an empty tensor) and what is new."""
    return ops.cat([new] if kept is None else [kept, new], -2)


def _latest(x: Tensor, window: int) -> Tensor:
    """`x[:, :, -window + 1:, :]`: a view, which keeps all of `x` in memory."""
    return x if x.shape[-2] < window else x.narrow(-2, window - 1)


def _grown(x: Tensor, length: Size, window: int | None) -> Tensor:
    if window is None:
        return ops.new_with_length(x, length)
    return _latest(ops.new_with_length(x, minimum(length, window)), window)


def _roll_in(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """A full window moves on by one token: both buffers are rolled into copies, which are copied back."""
    new_keys = ops.roll(keys)
    new_values = ops.roll(values)
    index = ops.full((1,), INT64)
    del new_keys, new_values, index
    return keys, values


def label(x: Tensor, purpose: str = KV_CACHE) -> Tensor:
    """Say that a tensor belongs to the cache."""
    x.storage.relabel(purpose)
    return x
