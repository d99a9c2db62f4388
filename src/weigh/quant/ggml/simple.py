"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: blocks of 32 with an fp16 scale, and of the second kind an fp16 minimum.

The first kind divides the signed value of the largest magnitude by -2^(b-1), so that it is met exactly; codes are
found with the scale before it was rounded to fp16.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from weigh.quant.blockwise import largest
from weigh.quant.ggml.common import (
    away_from_zero,
    bits_of,
    extreme,
    from_half,
    from_nibbles,
    half,
    halves_in_nibbles,
    inverse,
)


def _encode_scaled(values: Any, bits: int) -> Any:
    middle = 2 ** (bits - 1)
    scale = extreme(values) / np.float32(-middle)
    shifted = values * inverse(scale)[:, None] + np.float32(middle + 0.5)
    return np.concatenate([half(scale), *_packed(shifted, bits)], axis=1)


def _encode_with_minimum(values: Any, bits: int) -> Any:
    least = values.min(axis=1)
    scale = (values.max(axis=1) - least) / np.float32(2**bits - 1)
    shifted = (values - least[:, None]) * inverse(scale)[:, None] + np.float32(0.5)
    return np.concatenate([half(scale), half(least), *_packed(shifted, bits)], axis=1)


def _packed(shifted: Any, bits: int) -> list[Any]:
    """The fifth bits, if any, and the nibbles."""
    codes = np.minimum(shifted.astype(np.uint8), np.uint8(2**bits - 1))
    high = [np.packbits(codes >> np.uint8(4), axis=1, bitorder="little")] if bits == 5 else []
    return [*high, halves_in_nibbles(codes)]


def _codes(packed: Any, bits: int) -> Any:
    if bits == 4:
        return from_nibbles(packed).astype(np.float32)
    high = bits_of(packed[:, :4], 8).reshape(-1, 32)
    return (from_nibbles(packed[:, 4:]) | high << np.uint8(4)).astype(np.float32)


def _decode_scaled(blocks: Any, bits: int) -> Any:
    return (_codes(blocks[:, 2:], bits) - np.float32(2 ** (bits - 1))) * from_half(blocks[:, :2])


def _decode_with_minimum(blocks: Any, bits: int) -> Any:
    return _codes(blocks[:, 4:], bits) * from_half(blocks[:, :2]) + from_half(blocks[:, 2:4])


def _encode_q8_0(values: Any) -> Any:
    scale = largest(values) / np.float32(127)
    codes = away_from_zero(values * inverse(scale)[:, None]).astype(np.int8)
    return np.concatenate([half(scale), codes.view(np.uint8)], axis=1)


def _decode_q8_0(blocks: Any) -> Any:
    return np.ascontiguousarray(blocks[:, 2:]).view(np.int8).astype(np.float32) * from_half(blocks[:, :2])


ENCODE = {
    "q4_0": partial(_encode_scaled, bits=4),
    "q4_1": partial(_encode_with_minimum, bits=4),
    "q5_0": partial(_encode_scaled, bits=5),
    "q5_1": partial(_encode_with_minimum, bits=5),
    "q8_0": _encode_q8_0,
}
DECODE = {
    "q4_0": partial(_decode_scaled, bits=4),
    "q4_1": partial(_decode_with_minimum, bits=4),
    "q5_0": partial(_decode_scaled, bits=5),
    "q5_1": partial(_decode_with_minimum, bits=5),
    "q8_0": _decode_q8_0,
}
