"""Integers of 2 to 8 bits with a scale, and maybe a zero point, for a tensor, a row or a group of a row.

`q = clamp(round(x / scale) + zero)`, `x = (q - zero) * scale`. Symmetric: `scale = absmax / ((2^b - 1) / 2)`, so
that 4 bits are -8 to 7 and the largest magnitude, if positive, is clipped to 7 of 7.5 steps; asymmetric: the range,
which always has zero in it, is divided by `2^b - 1`. compressed-tensors divides and rounds the zero point as a
whole; torchao multiplies by `1 / scale` and rounds `min / scale` (`by_reciprocal`). A scale of zero is stored as
2^-23 by the former and 2^-126 by the latter: zeros stay zeros.

Codes lie in 32-bit words along the row, biased by 2^(b-1), as compressed-tensors' "pack-quantized"; 8 bits are plain
int8 ("int- quantized"). Its 0.20 cannot read zero points that fill one word; the bytes are right.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from weigh import dtypes
from weigh.dtypes import INT8, INT32
from weigh.quant.arrays import numpy_dtype
from weigh.quant.base import Packed, Part, Quantizer, at_least, ceil, matrix, one_of, refuse_infinite
from weigh.quant.bits import WORD, pack_words, unpack_words
from weigh.records import dataclass

SCALES = ("fp32", "bf16", "fp16")
CHUNK = 1 << 18
"""Values handled at once."""


@dataclass(frozen=True, slots=True)
class Integers(Quantizer):
    """Its settings."""

    bits: int = 4
    """Of a code: 2 to 8."""
    scope: str = "group"
    """What shares a scale: "tensor", "row" or "group"."""
    group: int = 128
    """Values of a row that share a scale; the last group may be shorter."""
    symmetric: bool = True
    """Without a zero point."""
    narrow: bool = False
    """Without the least code: -127 to 127."""
    clips: bool = True
    """Symmetric: whether the largest value may be clipped; if not, the scale is the least that reaches both ends."""
    by_reciprocal: bool = False
    """torchao's arithmetic."""
    scale_dtype: str = "fp32"
    """What scales are stored in; codes are found with the stored ones."""
    extremes: tuple[float, float] | None = None
    """The least and largest value of the tensor, where they are known before all values are."""

    def __post_init__(self) -> None:
        at_least(self.bits, 2, "bits")
        one_of(self.bits, tuple(range(2, 9)), "bits")
        one_of(self.scope, ("tensor", "row", "group"), "scope")
        at_least(self.group, 1, "group")
        one_of(self.scale_dtype, SCALES, "scale_dtype")

    @property
    def least(self) -> int:
        """The least code."""
        return -(2 ** (self.bits - 1)) + self.narrow

    @property
    def most(self) -> int:
        """The largest code."""
        return 2 ** (self.bits - 1) - 1

    def layout(self, shape: tuple[int, ...]) -> dict[str, Part]:
        rows, columns = matrix(shape)
        groups = {"tensor": (1,), "row": (rows, 1), "group": (rows, ceil(columns, self.group))}[self.scope]
        parts = {
            "codes": Part(shape, INT8) if self.bits == 8 else Part((rows, ceil(columns * self.bits, WORD)), INT32),
            "scale": Part(groups, dtypes.get(self.scale_dtype)),
        }
        if not self.symmetric:
            packed = Part((ceil(groups[0] * self.bits, WORD), *groups[1:]), INT32)
            parts["zero_point"] = Part(groups, INT8) if self.bits == 8 else packed
        return parts

    def cut(self, shape: tuple[int, ...]) -> int:
        if self.scope == "tensor":
            return 0
        return matrix(shape)[1] * (1 if self.symmetric or self.bits == 8 else WORD)

    def pack(self, array: Any) -> dict[str, Any]:
        view = array.reshape(matrix(array.shape))
        parts = {name: np.empty(part.shape, numpy_dtype(part.dtype)) for name, part in self.layout(array.shape).items()}
        codes, stored = parts["codes"].reshape(len(view), -1), parts["scale"]
        scale, zero = self._scales(*self._extremes(view))
        refuse_infinite(scale)
        stored[...] = scale.reshape(stored.shape)
        scale = stored.astype(np.float32).reshape(scale.shape)
        for piece in _rows(view):
            values = view[piece].astype(np.float32, copy=False)
            found = self._codes(values, self._of(scale, piece), self._of(zero, piece))
            codes[piece] = found if self.bits == 8 else pack_words(_biased(found, self.bits), self.bits)
        if not self.symmetric:
            of_rows = zero.astype(np.int8).reshape(stored.shape[0], -1)
            found = of_rows if self.bits == 8 else pack_words(_biased(of_rows.T, self.bits), self.bits).T
            parts["zero_point"][...] = found.reshape(parts["zero_point"].shape)
        return parts

    def unpack(self, packed: Packed) -> Any:
        rows, columns = matrix(packed.shape)
        stored = packed.parts["scale"]
        scale = stored.astype(np.float32).reshape(-1, 1 if self.scope != "group" else stored.shape[-1])
        zero = None
        if not self.symmetric:
            zero = packed.parts["zero_point"]
            if self.bits < 8:
                biased = unpack_words(zero.reshape(len(zero), -1).T, self.bits, stored.shape[0]).T
                zero = biased.astype(np.int8) - np.int8(2 ** (self.bits - 1))
            zero = zero.astype(np.float32).reshape(scale.shape)
        codes = packed.parts["codes"].reshape(rows, -1)
        out = np.empty((rows, columns), np.float32)
        for piece in _rows(out):
            found = codes[piece]
            if self.bits < 8:
                found = unpack_words(found, self.bits, columns).astype(np.int8) - np.int8(2 ** (self.bits - 1))
            values = self._grouped(found.astype(np.float32))
            if zero is not None:
                values -= self._of(zero, piece)
            values *= self._of(scale, piece)
            out[piece] = values.reshape(len(values), -1)[:, :columns]
        return out

    def _of(self, scales: Any, rows: slice) -> Any:
        """The scales of some rows, beside their groups."""
        return scales[..., None] if self.scope == "tensor" else scales[rows, :, None]

    def _grouped(self, values: Any) -> Any:
        """Rows in groups [rows, groups, values]; the last is filled up with its own last value."""
        rows, columns = values.shape
        if self.scope != "group":
            return values[:, None, :]
        if columns % self.group:
            values = np.pad(values, ((0, 0), (0, -columns % self.group)), mode="edge")
        return values.reshape(rows, -1, self.group)

    def _extremes(self, view: Any) -> tuple[Any, Any]:
        """The least and the largest value of every group, and 0."""
        if self.scope == "tensor" and self.extremes is not None:
            low, high = (np.full((1, 1), x, np.float32) for x in self.extremes)
            return np.minimum(low, 0), np.maximum(high, 0)
        groups = 1 if self.scope != "group" else ceil(view.shape[1], self.group)
        low, high = np.zeros((2, 1 if self.scope == "tensor" else len(view), groups), np.float32)
        for piece in _rows(view):
            values = self._grouped(view[piece].astype(np.float32, copy=False))
            at = slice(0, 1) if self.scope == "tensor" else piece
            axis = (0, 2) if self.scope == "tensor" else 2
            low[at] = np.minimum(low[at], values.min(axis=axis, initial=0).reshape(low[at].shape))
            high[at] = np.maximum(high[at], values.max(axis=axis, initial=0).reshape(high[at].shape))
        return low, high

    def _scales(self, low: Any, high: Any) -> tuple[Any, Any]:
        steps = np.float32(self.most - self.least)
        smallest = np.finfo(np.float32).tiny if self.by_reciprocal else np.finfo(np.float32).eps
        if self.symmetric:
            ends = np.maximum(low / np.float32(self.least), high / np.float32(self.most))
            scale = np.maximum(-low, high) / (steps / np.float32(2)) if self.clips else ends
        else:
            scale = (high - low) / steps
        tiny = scale < smallest if self.by_reciprocal else scale == 0
        scale = np.where(tiny, smallest, scale).astype(np.float32)
        if self.symmetric:
            return scale, np.zeros_like(scale)
        least = np.float32(self.least)
        if self.by_reciprocal:
            return scale, np.clip(least - np.rint(low / scale), self.least, self.most)
        return scale, np.rint(np.clip(least - low / scale, self.least, self.most))

    def _codes(self, values: Any, scale: Any, zero: Any) -> Any:
        grouped = self._grouped(values)
        scaled = grouped * (np.float32(1) / scale) if self.by_reciprocal else grouped / scale
        if self.by_reciprocal:
            np.rint(scaled, out=scaled)
        if not self.symmetric:
            scaled += zero
        np.clip(np.rint(scaled, out=scaled), self.least, self.most, out=scaled)
        return scaled.astype(np.int8).reshape(len(values), -1)[:, : values.shape[1]]


def _biased(codes: Any, bits: int) -> Any:
    return (codes + np.int8(2 ** (bits - 1))).astype(np.uint8)


def _rows(view: Any) -> Any:
    step = max(1, CHUNK // max(1, view.shape[1]))
    return (slice(start, min(start + step, len(view))) for start in range(0, len(view), step))
