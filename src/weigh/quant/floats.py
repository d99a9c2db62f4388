"""Narrow floats: casts to fp16, bf16 and fp8, fp8 with scales, and the 4-bit float E2M1.

A cast rounds to the nearest, ties to even, and carries what is not finite, as PyTorch's does: E4M3, which has no
infinity, saturates (ml_dtypes makes NaN of what is too large), E5M2, fp16 and bf16 overflow to infinity. With
scales, what is not finite is refused.

Scales: `scale = absmax / max`, kept in fp32 (or the model's dtype, `scale_dtype`), by which codes are multiplied: of
a tensor, of a row (compressed-tensors, FBGEMM), or of a block of 128 x 128 (DeepSeek-V3's `weight_scale_inv`, whose
edge blocks are partial). A scale of zero is stored as 2^-23, as compressed-tensors does.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from weigh import dtypes
from weigh.dtypes import FLOAT8_E4M3, DType
from weigh.quant.arrays import numpy_dtype, pieces
from weigh.quant.base import Packed, Part, Quantizer, at_least, ceil, matrix, one_of, refuse_infinite
from weigh.records import dataclass

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
"""The magnitudes of the OCP's 4-bit float; bit 3 of a code is the sign."""
E2M1_VALUES = np.concatenate([E2M1, -E2M1])
_MIDDLES = (E2M1[:-1] + E2M1[1:]) / 2
_BORDERS = np.where(np.arange(7) % 2, np.nextafter(_MIDDLES, np.float32(0)), _MIDDLES)
"""A magnitude above so many has that code: ties go to the even one."""
TINIEST = np.finfo(np.float32).eps


def to_float8(values: Any, dtype: DType) -> Any:
    """fp32 values as fp8, saturating."""
    limit = np.float32(dtype.max)
    return np.clip(values, -limit, limit).astype(numpy_dtype(dtype))


def to_e2m1(values: Any) -> Any:
    """fp32 values as 4-bit codes (uint8), saturating; NaN, which the format lacks, must not come."""
    magnitudes = np.abs(values)
    codes = (values.view(np.uint32) >> np.uint32(28)).astype(np.uint8) & np.uint8(8)
    above = np.empty(values.shape, np.bool_)
    for border in _BORDERS:
        np.greater(magnitudes, border, out=above)
        codes += above.view(np.uint8)
    return codes


@dataclass(frozen=True, slots=True)
class Cast(Quantizer):
    """Each value by itself, without a scale."""

    dtype: str = "bf16"
    """What values are cast to: "bf16", "fp16", "fp8_e4m3" or "fp8_e5m2"."""

    def __post_init__(self) -> None:
        one_of(self.dtype, ("bf16", "fp16", "fp8_e4m3", "fp8_e5m2"), "dtype")

    def layout(self, shape: tuple[int, ...]) -> dict[str, Part]:
        return {"values": Part(shape, dtypes.get(self.dtype))}

    def cut(self, shape: tuple[int, ...]) -> int:
        return 1

    def pack(self, array: Any) -> dict[str, Any]:
        dtype = dtypes.get(self.dtype)
        if dtype is not FLOAT8_E4M3:
            return {"values": array.astype(numpy_dtype(dtype))}
        flat, out = array.reshape(-1), np.empty(array.size, numpy_dtype(dtype))
        for piece in pieces(flat.size, 1):
            out[piece] = to_float8(flat[piece].astype(np.float32, copy=False), dtype)
        return {"values": out.reshape(array.shape)}

    def unpack(self, packed: Packed) -> Any:
        return packed.parts["values"].astype(np.float32)


@dataclass(frozen=True, slots=True)
class Float8(Quantizer):
    """fp8 with scales."""

    dtype: str = "fp8_e4m3"
    """Of the codes: "fp8_e4m3" or "fp8_e5m2"."""
    scope: str = "row"
    """What shares a scale: "tensor", "row" or "block"."""
    block: tuple[int, int] = (128, 128)
    """Rows and columns of a block."""
    scale_dtype: str = "fp32"
    """What scales are stored in; codes are found with the stored ones."""
    amax: float | None = None
    """The largest magnitude of the tensor, where it is known before all values are."""

    def __post_init__(self) -> None:
        one_of(self.dtype, ("fp8_e4m3", "fp8_e5m2"), "dtype")
        one_of(self.scope, ("tensor", "row", "block"), "scope")
        one_of(self.scale_dtype, ("fp32", "bf16", "fp16"), "scale_dtype")
        for size in self.block:
            at_least(size, 1, "block")

    def layout(self, shape: tuple[int, ...]) -> dict[str, Part]:
        rows, columns = matrix(shape)
        blocks = (ceil(rows, self.block[0]), ceil(columns, self.block[1]))
        scales = {"tensor": (1,), "row": (rows, 1), "block": blocks}[self.scope]
        return {"codes": Part(shape, dtypes.get(self.dtype)), "scale": Part(scales, dtypes.get(self.scale_dtype))}

    def cut(self, shape: tuple[int, ...]) -> int:
        return {"tensor": 0, "row": 1, "block": self.block[0]}[self.scope] * matrix(shape)[1]

    def pack(self, array: Any) -> dict[str, Any]:
        dtype, view = dtypes.get(self.dtype), array.reshape(matrix(array.shape))
        scale = self._absmax(view) / np.float32(dtype.max)
        refuse_infinite(scale)
        scale = np.where(scale == 0, TINIEST, scale).astype(numpy_dtype(dtypes.get(self.scale_dtype)))
        codes = np.empty(view.shape, numpy_dtype(dtype))
        for piece, factor in self._scaled(scale.astype(np.float32), *view.shape):
            codes[piece] = to_float8(view[piece].astype(np.float32, copy=False) / factor, dtype)
        return {"codes": codes.reshape(array.shape), "scale": scale}

    def unpack(self, packed: Packed) -> Any:
        codes = packed.parts["codes"].reshape(matrix(packed.shape))
        out = np.empty(codes.shape, np.float32)
        for piece, factor in self._scaled(packed.parts["scale"].astype(np.float32), *codes.shape):
            out[piece] = codes[piece].astype(np.float32) * factor
        return out

    def _scaled(self, scale: Any, rows: int, columns: int) -> Any:
        """Pieces of whole rows with what they are divided by."""
        high, wide = self.block
        if self.scope == "block":
            for i, of_rows in enumerate(scale):
                yield slice(i * high, min(rows, (i + 1) * high)), np.repeat(of_rows, wide)[:columns]
        else:
            for piece in pieces(rows, columns):
                yield piece, scale if self.scope == "tensor" else scale[piece]

    def _absmax(self, view: Any) -> Any:
        rows, columns = view.shape
        if self.scope == "tensor" and self.amax is not None:
            return np.array([self.amax], np.float32)
        if self.scope == "block":
            starts = np.arange(0, columns, self.block[1])
            found = np.zeros((ceil(rows, self.block[0]), len(starts)), np.float32)
            for i in range(len(found)):
                of_rows = np.abs(view[i * self.block[0] : (i + 1) * self.block[0]].astype(np.float32, copy=False))
                if columns:
                    found[i] = np.maximum.reduceat(of_rows.max(axis=0), starts)
            return found
        found = np.zeros((rows, 1) if self.scope == "row" else (1,), np.float32)
        for piece in pieces(rows, columns):
            values = np.abs(view[piece].astype(np.float32, copy=False))
            if self.scope == "row":
                found[piece] = values.max(axis=1, keepdims=True, initial=0)
            else:
                np.maximum(found, values.max(initial=0), out=found)
        return found
