"""IQ1, IQ2 and IQ3: eight (or four) values at once are a point of a grid. They can be read, not written.

Signs are a byte for eight values, or seven bits whose parity is the eighth. The points are data (`grids.npz`,
written by `tools/record_grids.py`).
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from weigh.quant.ggml.common import bits_of, from_half

F = np.float32
DELTA = F(0.125)


@cache
def _grid(name: str) -> Any:
    with (files("weigh.quant.ggml") / "grids.npz").open("rb") as file, np.load(file) as found:
        return found[name].astype(F)


@cache
def _seven_bits() -> Any:
    """The eight signs of each number of seven bits: an even number of them is minus."""
    numbers = np.arange(128, dtype=np.uint8)
    return _signs(numbers | np.bitwise_count(numbers) % np.uint8(2) << np.uint8(7))


def _signs(packed: Any) -> Any:
    """1 or -1 for each bit of bytes [...]: [..., 8]."""
    return F(1) - F(2) * bits_of(packed, 8)


def _words(blocks: Any, start: int, stop: int, dtype: Any) -> Any:
    return np.ascontiguousarray(blocks[:, start:stop]).view(dtype)


def _scaled(scale: Any, points: Any, signs: Any) -> Any:
    """Points and signs [blocks, n] under scales [blocks, groups]."""
    groups = scale.shape[1]
    signed = points.reshape(len(scale), -1) * signs.reshape(len(scale), -1)
    return (scale[..., None] * signed.reshape(len(scale), groups, -1)).reshape(len(scale), -1)


def _nibbles(packed: Any) -> Any:
    return bits_of(packed, 2, 4).reshape(len(packed), -1)


def _iq2_xxs(blocks: Any) -> Any:
    words = _words(blocks, 2, 66, np.uint32).reshape(-1, 8, 2)
    index = np.ascontiguousarray(words[..., 0]).view(np.uint8).reshape(-1, 32)
    scale = from_half(blocks[:, :2]) * (F(0.5) + (words[..., 1] >> np.uint32(28)).astype(F)) * F(0.25)
    return _scaled(scale, _grid("iq2_xxs")[index], _seven_bits()[bits_of(words[..., 1], 4, 7)])


def _iq2_xs(blocks: Any) -> Any:
    words = _words(blocks, 2, 66, np.uint16)
    scale = from_half(blocks[:, :2]) * (F(0.5) + _nibbles(blocks[:, 66:74])) * F(0.25)
    return _scaled(scale, _grid("iq2_xs")[words & np.uint16(511)], _seven_bits()[words >> np.uint16(9)])


def _iq2_s(blocks: Any) -> Any:
    high = bits_of(blocks[:, 66:74], 4, 2).reshape(-1, 32).astype(np.uint16)
    index = blocks[:, 2:34] | high << np.uint16(8)
    scale = from_half(blocks[:, :2]) * (F(0.5) + _nibbles(blocks[:, 74:82])) * F(0.25)
    return _scaled(scale, _grid("iq2_s")[index], _signs(blocks[:, 34:66]))


def _iq3_xxs(blocks: Any) -> Any:
    words = _words(blocks, 66, 98, np.uint32)
    scale = from_half(blocks[:, :2]) * (F(0.5) + (words >> np.uint32(28)).astype(F)) * F(0.5)
    return _scaled(scale, _grid("iq3_xxs")[blocks[:, 2:66]], _seven_bits()[bits_of(words, 4, 7)])


def _iq3_s(blocks: Any) -> Any:
    high = bits_of(blocks[:, 66:74], 8).reshape(-1, 64).astype(np.uint16)
    scale = from_half(blocks[:, :2]) * (F(1) + F(2) * _nibbles(blocks[:, 106:110]))
    return _scaled(scale, _grid("iq3_s")[blocks[:, 2:66] | high << np.uint16(8)], _signs(blocks[:, 74:106]))


def _iq1_s(blocks: Any) -> Any:
    words = _words(blocks, 34, 50, np.uint16)
    high = bits_of(words, 4, 3).reshape(-1, 32)
    points = _grid("iq1_s")[blocks[:, 2:34] | high << np.uint16(8)].reshape(len(blocks), 8, 32)
    scale = from_half(blocks[:, :2]) * (F(2) * (words >> np.uint16(12) & np.uint16(7)) + F(1))
    delta = np.where(words & np.uint16(0x8000), -DELTA, DELTA)
    return (scale[..., None] * (points + delta[..., None])).reshape(-1, 256)


def _iq1_m(blocks: Any) -> Any:
    words = _words(blocks, 48, 56, np.uint16)
    pieces = (words & np.uint16(0xF000)) >> np.array([12, 8, 4, 0], np.uint16)
    half = np.bitwise_or.reduce(pieces, axis=1).view(np.float16).astype(F)[:, None]
    high = _nibbles(blocks[:, 32:48])
    points = _grid("iq1_s")[blocks[:, :32] | (high & np.uint8(7)).astype(np.uint16) << np.uint16(8)]
    delta = np.where(high & np.uint8(8), -DELTA, DELTA)
    scale = half * (F(2) * bits_of(words, 4, 3).reshape(-1, 16) + F(1))
    shifted = (points + delta[..., None]).reshape(len(blocks), 16, 16)
    return (scale[..., None] * shifted).reshape(-1, 256)


ENCODE: dict[str, Any] = {}
DECODE = {
    "iq1_s": _iq1_s,
    "iq1_m": _iq1_m,
    "iq2_xxs": _iq2_xxs,
    "iq2_xs": _iq2_xs,
    "iq2_s": _iq2_s,
    "iq3_xxs": _iq3_xxs,
    "iq3_s": _iq3_s,
}
