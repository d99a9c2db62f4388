"""Codes of a few bits in bytes and words."""

from __future__ import annotations

from typing import Any

import numpy as np

from weigh.quant.base import ceil

WORD = 32


def pack_words(codes: Any, bits: int) -> Any:
    """Unsigned codes [rows, columns] as int32 [rows, ceil(columns * bits / 32)].

    One stream of bits a row, the lowest first, without gaps: a code may straddle two words. So
    compressed-tensors packs since release 0.20 (before it left the bits of a word unused that held no whole code).
    """
    rows, columns = codes.shape
    words = ceil(columns * bits, WORD)
    stream = np.zeros((rows, words * 4), np.uint8)
    if 8 % bits == 0:
        packed = _in_bytes(codes.astype(np.uint8, copy=False), bits)
    else:
        spread = np.unpackbits(codes.astype(np.uint8, copy=False)[..., None], axis=-1, bitorder="little", count=bits)
        packed = np.packbits(spread.reshape(rows, columns * bits), axis=-1, bitorder="little")
    stream[:, : packed.shape[1]] = packed
    return stream.view("<i4").astype(np.int32, copy=False)


def unpack_words(words: Any, bits: int, columns: int) -> Any:
    """The codes (uint8) that `pack_words` packed."""
    stream = np.ascontiguousarray(words, "<i4").view(np.uint8)
    if 8 % bits == 0:
        return _from_bytes(stream, bits)[:, :columns]
    spread = np.unpackbits(stream, axis=-1, bitorder="little", count=columns * bits).reshape(-1, columns, bits)
    return np.packbits(spread, axis=-1, bitorder="little")[..., 0]


def pack_nibbles(codes: Any) -> Any:
    """Codes [..., n] of 4 bits as [..., n / 2] bytes, the first in the lower half."""
    return codes[..., ::2] | codes[..., 1::2] << np.uint8(4)


def unpack_nibbles(packed: Any) -> Any:
    """The codes that `pack_nibbles` packed."""
    return np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1).reshape(*packed.shape[:-1], -1)


def _in_bytes(codes: Any, bits: int) -> Any:
    each = 8 // bits
    if codes.shape[1] % each:
        codes = np.pad(codes, ((0, 0), (0, -codes.shape[1] % each)))
    found = codes[:, ::each].copy()
    for i in range(1, each):
        found |= codes[:, i::each] << np.uint8(i * bits)
    return found


def _from_bytes(stream: Any, bits: int) -> Any:
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((stream[..., None] >> shifts) & np.uint8(2**bits - 1)).reshape(len(stream), -1)
