"""int8 by the largest magnitude: one scale for a tensor, a row or a column.

`q = round(127 / absmax * x)` with ties to even, `x = q * absmax / 127` (Dettmers et al. 2022, arXiv:2208.07339,
section 2). A scale a row of the weight is what LLM.int8() stores (`int8`): there the weight is cast to fp16 first,
and what is kept is absmax, not absmax / 127. Vector-wise quantization of a product is this on rows of one factor and
columns of the other (`weigh.quant.llm_int8`). A vector of zeros has codes 0.
Magnitudes below 127 / 2^128 come back as zeros.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from weigh.dtypes import FLOAT32, INT8
from weigh.quant.arrays import pieces, rounded_to_half
from weigh.quant.base import Packed, Part, Quantizer, matrix, one_of, refuse_infinite
from weigh.records import dataclass

LEVELS = np.float32(127)
INVERSE = np.float32(1 / 127)
"""What bitsandbytes multiplies by where the formula divides."""
LARGE = np.float32(2.0**120)
"""Beyond, 127 times absmax would overflow: it is divided before it is multiplied."""


@dataclass(frozen=True, slots=True)
class Absmax(Quantizer):
    """Its settings."""

    scope: str = "row"
    """What shares a scale: "tensor", "row" (all but the last axis) or "column" (the last axis)."""
    half: bool = False
    """Whether values are cast to fp16 first, as `Int8Params` of bitsandbytes does."""
    amax: float | None = None
    """The largest magnitude of the tensor, where it is known before all values are."""

    def __post_init__(self) -> None:
        one_of(self.scope, ("tensor", "row", "column"), "scope")

    def layout(self, shape: tuple[int, ...]) -> dict[str, Part]:
        rows, columns = (1, prod(shape)) if self.scope == "tensor" else matrix(shape)
        scales = {"tensor": 1, "row": rows, "column": columns}[self.scope]
        return {"codes": Part(shape, INT8), "absmax": Part((scales,), FLOAT32)}

    def cut(self, shape: tuple[int, ...]) -> int:
        return 0 if self.scope != "row" else matrix(shape)[1]

    def pack(self, array: Any) -> dict[str, Any]:
        view = self._view(array)
        absmax = self._absmax(view)
        refuse_infinite(absmax, "too large for fp16, NaN or infinite" if self.half else "NaN or infinite")
        codes = np.empty(view.shape, np.int8)
        scale = LEVELS / absmax
        for piece in pieces(*view.shape):
            numbers = self._numbers(view[piece])
            factor = scale[piece, None] if self.scope == "row" else scale
            codes[piece] = to_codes(numbers * factor)
        return {"codes": codes.reshape(array.shape), "absmax": absmax}

    def unpack(self, packed: Packed) -> Any:
        codes, absmax = self._view(packed.parts["codes"]), packed.parts["absmax"]
        large = absmax > LARGE
        before, after = np.where(large, absmax * INVERSE, absmax), np.where(large, np.float32(1), INVERSE)
        values = np.empty(codes.shape, np.float32)
        for piece in pieces(*codes.shape):
            factors = (x[piece, None] if self.scope == "row" else x for x in (before, after))
            np.multiply(codes[piece], next(factors), out=values[piece], dtype=np.float32)
            values[piece] *= next(factors) if large.any() else INVERSE
        return values

    def _view(self, array: Any) -> Any:
        """Two axes, of which the second is the one that is gone through fastest."""
        return array.reshape((-1, 1) if self.scope == "tensor" else matrix(array.shape))

    def _numbers(self, values: Any) -> Any:
        numbers = values.astype(np.float32, copy=False)
        return rounded_to_half(numbers) if self.half and values.dtype != np.float16 else numbers

    def _absmax(self, view: Any) -> Any:
        if self.scope == "tensor" and self.amax is not None:
            return np.array([self.amax], np.float32)
        rows, columns = view.shape
        found = np.zeros({"tensor": 1, "row": rows, "column": columns}[self.scope], np.float32)
        for piece in pieces(rows, columns):
            numbers = np.abs(view[piece].astype(np.float32, copy=False))
            if self.scope == "row":
                found[piece] = numbers.max(axis=1, initial=0)
            else:
                np.maximum(found, numbers.max(axis=None if self.scope == "tensor" else 0, initial=0), out=found)
        return found.astype(np.float16).astype(np.float32) if self.half else found  # the largest, however rounded


def to_codes(scaled: Any) -> Any:
    """Numbers from -127 to 127 as int8, ties to even; what a scale that overflowed made NaN or infinite is 0."""
    np.rint(scaled, out=scaled)
    scaled[~np.isfinite(scaled)] = 0
    return scaled.astype(np.int8)
