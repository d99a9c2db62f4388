"""Pruning by magnitude: 2 of every 4 values of a row, or a share of the whole, with a mask of one bit a value.

What is stored is what compressed-tensors' sparse formats store: the kept values in order, and a mask (bit i of a
byte is its i-th value) by rows; of unstructured sparsity also where each row's values begin. NVIDIA's own 2:4 layout
has two bits a kept value instead of the mask: the same bytes. Of equal magnitudes the earlier is kept.
"""

from __future__ import annotations

from math import floor, prod
from typing import Any

import numpy as np

from weigh import dtypes
from weigh.dtypes import INT64, UINT8
from weigh.errors import InputError, UsageError
from weigh.quant.arrays import numpy_dtype
from weigh.quant.base import Packed, Part, Quantizer, ceil, matrix, one_of, refuse_infinite
from weigh.records import dataclass

_DTYPES = ("fp32", "bf16", "fp16")


@dataclass(frozen=True, slots=True)
class TwoOfFour(Quantizer):
    """2:4 sparsity."""

    dtype: str = "bf16"
    """What kept values are stored in."""

    def __post_init__(self) -> None:
        one_of(self.dtype, _DTYPES, "dtype")

    def layout(self, shape: tuple[int, ...]) -> dict[str, Part]:
        rows, columns = matrix(shape)
        if columns % 4:
            raise InputError(f"rows of {columns:,} values are no whole fours", hint="Keep the tensor dense.")
        return {
            "values": Part((rows, columns // 2), dtypes.get(self.dtype)),
            "mask": Part((rows, ceil(columns, 8)), UINT8),
        }

    def cut(self, shape: tuple[int, ...]) -> int:
        return matrix(shape)[1]

    def pack(self, array: Any) -> dict[str, Any]:
        view = array.reshape(matrix(array.shape))
        fours = np.abs(view.astype(np.float32, copy=False)).reshape(-1, 4)
        refuse_infinite(fours)
        rank = np.argsort(np.argsort(-fours, axis=1, kind="stable"), axis=1)
        kept = (rank < 2).reshape(view.shape)
        values = view[kept].astype(numpy_dtype(dtypes.get(self.dtype))).reshape(len(view), -1)
        return {"values": values, "mask": np.packbits(kept, axis=1, bitorder="little")}

    def unpack(self, packed: Packed) -> Any:
        return _spread(packed.parts, *matrix(packed.shape))


@dataclass(frozen=True, slots=True)
class Unstructured(Quantizer):
    """A share of the tensor's values, wherever they lie."""

    sparsity: float = 0.5
    """The share that is taken for zero, rounded down to whole values."""
    dtype: str = "bf16"
    """What kept values are stored in."""

    def __post_init__(self) -> None:
        one_of(self.dtype, _DTYPES, "dtype")
        if not 0 <= self.sparsity <= 1:
            raise UsageError(f"is {self.sparsity!r}", where="sparsity", hint="Give a share from 0 to 1.")

    def layout(self, shape: tuple[int, ...]) -> dict[str, Part]:
        rows, columns = matrix(shape)
        return {
            "values": Part((self._kept(prod(shape)),), dtypes.get(self.dtype)),
            "mask": Part((rows, ceil(columns, 8)), UINT8),
            "row_offsets": Part((rows, 1), INT64),
        }

    def pack(self, array: Any) -> dict[str, Any]:
        view = array.reshape(matrix(array.shape))
        magnitudes = np.abs(view.astype(np.float32, copy=False)).reshape(-1)
        refuse_infinite(magnitudes)
        kept = np.zeros(view.size, np.bool_)
        count = self._kept(view.size)
        if count:
            border = np.partition(magnitudes, view.size - count)[view.size - count]
            np.greater(magnitudes, border, out=kept)
            equal = np.flatnonzero(magnitudes == border)
            kept[equal[: count - int(kept.sum())]] = True
        of_rows = kept.reshape(view.shape)
        before = np.cumsum(of_rows.sum(axis=1)) - of_rows.sum(axis=1)
        return {
            "values": view.reshape(-1)[kept].astype(numpy_dtype(dtypes.get(self.dtype))),
            "mask": np.packbits(of_rows, axis=1, bitorder="little"),
            "row_offsets": before.astype(np.int64)[:, None],
        }

    def unpack(self, packed: Packed) -> Any:
        return _spread(packed.parts, *matrix(packed.shape))

    def _kept(self, elements: int) -> int:
        return elements - floor(elements * self.sparsity)


def _spread(parts: dict[str, Any], rows: int, columns: int) -> Any:
    kept = np.unpackbits(parts["mask"], axis=1, bitorder="little", count=columns).astype(np.bool_)
    if kept.sum() != parts["values"].size:
        raise InputError(f"the mask keeps {kept.sum():,} values and there are {parts['values'].size:,}", where="mask")
    out = np.zeros((rows, columns), np.float32)
    out[kept] = parts["values"].reshape(-1).astype(np.float32)
    return out
