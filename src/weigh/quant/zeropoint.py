"""int8 with a zero point for the whole tensor, as textbooks have it: the range itself is spread over -128 to 127.

`s = 255 / (max - min)`, `z = -round(s * min) - 128`, `q = clamp(round(s * x + z))`, `x = (q - z) / s` (Dettmers et
al. 2022, section 2.1). The range need not include zero, unlike that of `weigh.quant.integers`. Where all values are
equal, s is 1 and values come back rounded.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from weigh.dtypes import FLOAT32, INT8
from weigh.quant.base import Packed, Part, Quantizer, refuse_infinite
from weigh.records import dataclass

BLOCK = 1 << 16
LEAST = np.float32(1e-36)
"""A range below is taken for this: its inverse has to be a number."""


@dataclass(frozen=True, slots=True)
class ZeroPoint(Quantizer):
    """It has no settings but what is known beforehand."""

    extremes: tuple[float, float] | None = None
    """The least and the largest value, where they are known before all values are."""

    def layout(self, shape: tuple[int, ...]) -> dict[str, Part]:
        return {"codes": Part(shape, INT8), "scale": Part((1,), FLOAT32), "zero_point": Part((1,), FLOAT32)}

    def pack(self, array: Any) -> dict[str, Any]:
        low, high = np.array(self.extremes or _extremes(array), np.float32)
        refuse_infinite(np.array([low, high]))
        scale = np.float32(255) / np.maximum(high - low, LEAST) if high > low else np.float32(1)
        zero = -np.rint(scale * low) - np.float32(128)
        flat, codes = array.reshape(-1), np.empty(array.size, np.int8)
        for start in range(0, flat.size, BLOCK):
            scaled = flat[start : start + BLOCK].astype(np.float32) * scale + zero
            codes[start : start + BLOCK] = np.clip(np.rint(scaled), -128, 127)
        return {"codes": codes.reshape(array.shape), "scale": np.array([scale]), "zero_point": np.array([zero])}

    def unpack(self, packed: Packed) -> Any:
        return (packed.parts["codes"].astype(np.float32) - packed.parts["zero_point"]) / packed.parts["scale"]


def _extremes(array: Any) -> Any:
    if not array.size:
        return 0.0, 0.0
    low, high = np.float32(np.inf), np.float32(-np.inf)
    for start in range(0, array.size, BLOCK):
        piece = array.reshape(-1)[start : start + BLOCK].astype(np.float32, copy=False)
        low, high = np.minimum(low, piece.min()), np.maximum(high, piece.max())
    return low, high
