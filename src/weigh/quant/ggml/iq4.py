"""IQ4_NL and IQ4_XS: sixteen unequal steps, in blocks of 32, or eight such with 6-bit scales."""

from __future__ import annotations

from typing import Any

import numpy as np

from weigh.quant.ggml.common import bits_of, from_half, from_nibbles, half, halves_in_nibbles, inverse
from weigh.quant.ggml.search import grouped, nearest_in, table_scale

F = np.float32
TABLE = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], F)
TRIES = 7


def _scales(values: Any) -> Any:
    """Of every 32 values."""
    return table_scale(grouped(values, 32), TABLE, TRIES)[:-1]


def _encode_iq4_nl(values: Any) -> Any:
    scale = _scales(values)
    codes = nearest_in(values * inverse(scale)[:, None], TABLE)
    return np.concatenate([half(scale), halves_in_nibbles(codes)], axis=1)


def _decode_iq4_nl(blocks: Any) -> Any:
    return TABLE[from_nibbles(blocks[:, 2:])] * from_half(blocks[:, :2])


def _encode_iq4_xs(values: Any) -> Any:
    scale = _scales(values).reshape(-1, 8)
    largest = np.take_along_axis(scale, np.abs(scale).argmax(axis=1)[:, None], axis=1)
    d = -largest / F(32)
    small = np.clip(np.rint(inverse(d) * scale), -32, 31)
    codes = nearest_in(values.reshape(-1, 8, 32) * inverse(d * small)[..., None], TABLE)
    biased = (small + 32).astype(np.uint16)
    high = np.bitwise_or.reduce(biased >> np.uint16(4) << np.arange(0, 16, 2, dtype=np.uint16), axis=1)
    low = (biased[:, ::2] & 15 | (biased[:, 1::2] & 15) << 4).astype(np.uint8)
    packed = halves_in_nibbles(codes).reshape(-1, 128)
    return np.concatenate([half(d), high[:, None].view(np.uint8), low, packed], axis=1)


def _decode_iq4_xs(blocks: Any) -> Any:
    high = bits_of(np.ascontiguousarray(blocks[:, 2:4]).view(np.uint16), 8, 2).reshape(-1, 8).astype(np.uint8)
    low = bits_of(blocks[:, 4:8], 2, 4).reshape(-1, 8)
    scale = from_half(blocks[:, :2]) * ((low | high << np.uint8(4)).astype(F) - F(32))
    values = TABLE[from_nibbles(blocks[:, 8:].reshape(-1, 8, 16))]
    return (scale[..., None] * values).reshape(-1, 256)


ENCODE = {"iq4_nl": _encode_iq4_nl, "iq4_xs": _encode_iq4_xs}
DECODE = {"iq4_nl": _decode_iq4_nl, "iq4_xs": _decode_iq4_xs}
