"""Q1_0, Q2_0, TQ1_0 and TQ2_0: signs, four levels and trits with an fp16 scale.

TQ1_0 packs five trits in a byte as a fraction of 3^5, so that multiplying by 3 brings the next one to the top.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from weigh.quant.blockwise import largest
from weigh.quant.ggml.common import away_from_zero, bits_of, from_half, half, inverse

_THREES = np.array([81, 27, 9, 3, 1], np.uint16)
_RUNS = ((0, 32, 5), (32, 48, 5), (48, 52, 4))
"""Of TQ1_0: bytes from, to, and trits in each."""


def _encode_q1_0(values: Any) -> Any:
    scale = np.zeros(len(values), np.float32)
    for column in np.abs(values).T:  # in order: the sum is rounded at each step
        scale += column
    return np.concatenate([half(scale / np.float32(128)), np.packbits(values >= 0, axis=1, bitorder="little")], axis=1)


def _decode_q1_0(blocks: Any) -> Any:
    scale = from_half(blocks[:, :2])
    return np.where(bits_of(blocks[:, 2:], 8).reshape(-1, 128), scale, -scale)


def _encode_q2_0(values: Any) -> Any:
    scale = largest(values)
    codes = (away_from_zero(values * inverse(scale)[:, None]) + np.float32(1)).astype(np.uint8)
    shifted = codes.reshape(-1, 16, 4) << np.arange(0, 8, 2, dtype=np.uint8)
    return np.concatenate([half(scale), np.bitwise_or.reduce(shifted, axis=2)], axis=1)


def _decode_q2_0(blocks: Any) -> Any:
    codes = bits_of(blocks[:, 2:], 4, 2).reshape(-1, 64)
    return (codes.astype(np.float32) - np.float32(1)) * from_half(blocks[:, :2])


def _trits(values: Any) -> tuple[Any, Any]:
    scale = largest(values)
    return (away_from_zero(values * inverse(scale)[:, None]) + np.float32(1)).astype(np.uint8), scale


def _encode_tq1_0(values: Any) -> Any:
    trits, scale = _trits(values)
    packed, at = [], 0
    for start, stop, count in _RUNS:
        wide = stop - start
        run = trits[:, at : at + wide * count].reshape(-1, count, wide).astype(np.uint16)
        whole = (run * _THREES[:count, None]).sum(axis=1, dtype=np.uint16)
        packed.append(((whole.astype(np.uint32) * 256 + 242) // 243).astype(np.uint8))
        at += wide * count
    return np.concatenate([*packed, half(scale)], axis=1)


def _decode_tq1_0(blocks: Any) -> Any:
    found = []
    for start, stop, count in _RUNS:
        threes = np.array([1, 3, 9, 27, 81][:count], np.uint8)[:, None]
        fractions = (blocks[:, None, start:stop] * threes).astype(np.uint16)  # what passes 256 is gone, as it should
        found.append((fractions * np.uint16(3) >> np.uint16(8)).reshape(len(blocks), -1))
    return (np.concatenate(found, axis=1).astype(np.float32) - np.float32(1)) * from_half(blocks[:, 52:])


def _encode_tq2_0(values: Any) -> Any:
    trits, scale = _trits(values)
    shifted = trits.reshape(-1, 2, 4, 32) << np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    return np.concatenate([np.bitwise_or.reduce(shifted, axis=2).reshape(-1, 64), half(scale)], axis=1)


def _decode_tq2_0(blocks: Any) -> Any:
    codes = bits_of(blocks[:, :64].reshape(-1, 2, 32), 4, 2).swapaxes(2, 3).reshape(-1, 256)
    return (codes.astype(np.float32) - np.float32(1)) * from_half(blocks[:, 64:])


ENCODE = {"q1_0": _encode_q1_0, "q2_0": _encode_q2_0, "tq1_0": _encode_tq1_0, "tq2_0": _encode_tq2_0}
DECODE = {"q1_0": _decode_q1_0, "q2_0": _decode_q2_0, "tq1_0": _decode_tq1_0, "tq2_0": _decode_tq2_0}
