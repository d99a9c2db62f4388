"""Number formats as numpy knows them, and passes over arrays in pieces that fit a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from weigh import dtypes
from weigh.dtypes import DType
from weigh.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK = 1 << 16
"""Values handled at once: 256 KiB of fp32, a part of the second-level cache."""

_NAMES = {
    "fp64": np.float64,
    "fp32": np.float32,
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "fp8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "fp8_e8m0": ml_dtypes.float8_e8m0fnu,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint64": np.uint64,
    "uint32": np.uint32,
    "uint16": np.uint16,
    "uint8": np.uint8,
    "bool": np.bool_,
}
_OURS = {np.dtype(kind): dtypes.get(name) for name, kind in _NAMES.items()}
_NUMPYS = {ours: numpys for numpys, ours in _OURS.items()}


def dtype_of(array: Any) -> DType:
    """Our name of an array's format.

    Raises:
        InputError: we have none.
    """
    found = _OURS.get(array.dtype)
    if found is None:
        raise InputError(f"arrays of {array.dtype} are not handled", hint="Give numbers.")
    return found


def numpy_dtype(dtype: DType) -> Any:
    """Numpy's (or ml_dtypes') format of that name.

    Raises:
        InputError: it has none, because elements have no bytes of their own.
    """
    if dtype not in _NUMPYS:
        raise InputError(f"numpy has no array of {dtype}")
    return _NUMPYS[dtype]


def pieces(rows: int, columns: int) -> Iterator[slice]:
    """Slices of whole rows that hold about `CHUNK` values each."""
    step = max(1, CHUNK // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def in_blocks(array: Any, block: int) -> Iterator[tuple[slice, Any]]:
    """An array's values in the order of memory as blocks: which blocks, and fp32 [blocks, block].

    The last block is filled up with zeros where the values end inside it. What is handed out may be the
    array itself: callers do not write to it.
    """
    flat = array.reshape(-1)
    full = flat.size // block
    body = flat[: full * block].reshape(full, block)
    for piece in pieces(full, block):
        yield piece, body[piece].astype(np.float32, copy=False)
    rest = flat[full * block :]
    if rest.size:
        last = np.zeros((1, block), np.float32)
        last[0, : rest.size] = rest
        yield slice(full, full + 1), last


def rounded_to_half(values: Any) -> Any:
    """fp32 values rounded to what fp16 can hold, in fp32: numpy's own cast there and back takes three times as long.

    What is too large for fp16 keeps its size.
    """
    bits = values.view(np.uint32)
    # To 10 bits of fraction, ties to even; below 2^-14 to multiples of 2^-24, the last bit of 0.75.
    normal = (bits + (np.uint32(0xFFF) + (bits >> np.uint32(13) & np.uint32(1)))) & np.uint32(0xFFFFE000)
    small = values + np.float32(0.75)
    small -= np.float32(0.75)
    return np.where(np.abs(values) < np.float32(2.0**-14), np.copysign(small, values), normal.view(np.float32))


def load(path: str) -> dict[str, Any]:
    """The arrays of an .npz file by name.

    Raises:
        InputError: it is none.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError) as error:
        hint = "Write it with numpy.savez: a name for each array."
        raise InputError(f"is no .npz file: {error}", where=path, hint=hint) from None
