"""Small things that GGML's types share."""

from __future__ import annotations

from typing import Any

import numpy as np

from weigh.errors import InputError

ALMOST_HALF = np.nextafter(np.float32(0.5), np.float32(0))


def half(values: Any) -> Any:
    """A number for each block as the two bytes of an fp16.

    Raises:
        InputError: it is too large.
    """
    stored = values.reshape(-1, 1).astype(np.float16)
    if not np.isfinite(stored).all():
        raise InputError("a block's scale does not fit fp16", hint="Scale the tensor, or choose another type.")
    return stored.view(np.uint8)


def from_half(two_bytes: Any) -> Any:
    """The fp16 of each block, in fp32 [blocks, 1]."""
    return np.ascontiguousarray(two_bytes).view(np.float16).astype(np.float32)


def inverse(values: Any) -> Any:
    """1 / x, and 0 of 0."""
    return np.where(values == 0, np.float32(0), np.float32(1) / values)


def away_from_zero(values: Any) -> Any:
    """Rounded to the nearest whole number, halves away from zero, as C's roundf."""
    return np.trunc(values + np.copysign(ALMOST_HALF, values))


def extreme(values: Any) -> Any:
    """Of each row, the value of the largest magnitude with its sign; the first of several."""
    at = np.abs(values).argmax(axis=-1)
    return np.take_along_axis(values, at[..., None], axis=-1)[..., 0]


def halves_in_nibbles(codes: Any) -> Any:
    """Codes [..., n] as [..., n / 2] bytes: the first half below, the second above."""
    n = codes.shape[-1] // 2
    return codes[..., :n] & np.uint8(15) | codes[..., n:] << np.uint8(4)


def from_nibbles(packed: Any) -> Any:
    """The codes that `halves_in_nibbles` packed."""
    return np.concatenate([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1)


def bits_of(packed: Any, count: int, bits: int = 1) -> Any:
    """Of each byte [..., n], its codes of so many bits, the lowest first: [..., n, count]."""
    shifts = np.arange(0, count * bits, bits, dtype=packed.dtype)
    return packed[..., None] >> shifts & packed.dtype.type(2**bits - 1)
