"""What every quantizer is: settings, the parts it stores, and its arithmetic."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import prod
from typing import Any

import numpy as np

from weigh.dtypes import BFLOAT16, FLOAT16, FLOAT32, DType
from weigh.errors import InputError, UsageError
from weigh.quant.arrays import dtype_of, numpy_dtype
from weigh.records import dataclass

Array = Any
"""A numpy array; types are not checked where numpy is absent."""
SOURCES = (FLOAT32, BFLOAT16, FLOAT16)
"""What weights may come in. Wider floats would be rounded before they are quantized, which is for the caller to do."""


@dataclass(frozen=True, slots=True)
class Part:
    """An array that is stored."""

    shape: tuple[int, ...]
    dtype: DType

    @property
    def num_bytes(self) -> int:
        """What it takes."""
        return self.dtype.num_bytes(prod(self.shape))


@dataclass(frozen=True, slots=True)
class Packed:
    """A quantized array."""

    parts: dict[str, Array]
    """What is stored, bit for bit."""
    shape: tuple[int, ...]
    """Of the array that was quantized."""
    dtype: DType
    """Of the array that was quantized."""

    @property
    def num_bytes(self) -> int:
        """What the parts take."""
        return sum(part.nbytes for part in self.parts.values())


class Quantizer(ABC):
    """A method with its settings.

    Values that are not finite are refused by every method that has scales, because one of them would spoil its block
    silently; the casts carry them as their number format does. Where a format has a zero, zeros come back as zeros.
    """

    @abstractmethod
    def layout(self, shape: tuple[int, ...]) -> dict[str, Part]:
        """The parts that an array of that shape is stored as.

        Raises:
            InputError: the method cannot store that shape.
        """

    @abstractmethod
    def pack(self, array: Array) -> dict[str, Array]:
        """The parts of an array whose dtype and shape are allowed."""

    @abstractmethod
    def unpack(self, packed: Packed) -> Array:
        """The values in fp32, in the array's shape or flat."""

    def cut(self, shape: tuple[int, ...]) -> int:
        """Where an array may be cut: pieces of a multiple of so many elements have the parts of the whole, in pieces.

        The parts of the pieces, one behind the other along their first axis, are those of the whole; 0 where only the
        whole can be quantized. Methods whose scale is the whole array's take it from their setting `amax`, and can
        then be cut.
        """
        return 0

    def quantize(self, array: Array) -> Packed:
        """The parts that `array` (fp32, bf16 or fp16) is stored as.

        Raises:
            InputError: its dtype or shape cannot be quantized, or a value is NaN or infinite.
        """
        source = dtype_of(array)
        if source not in SOURCES:
            raise InputError(f"an array in {source} cannot be quantized", hint="Give fp32, bf16 or fp16.")
        layout = self.layout(array.shape)
        if not array.size:  # nothing to reduce over; scales of nothing are zero
            parts = {name: np.zeros(part.shape, numpy_dtype(part.dtype)) for name, part in layout.items()}
            return Packed(parts, array.shape, source)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
            return Packed(self.pack(np.ascontiguousarray(array).reshape(array.shape)), array.shape, source)

    def dequantize(self, packed: Packed) -> Array:
        """The values in fp32, rounded once where the method's definition does.

        Raises:
            InputError: the parts are not those of such an array.
        """
        for name, part in self.layout(packed.shape).items():
            found = packed.parts.get(name)
            if found is None or found.shape != part.shape or dtype_of(found) is not part.dtype:
                says = "is missing" if found is None else f"is {dtype_of(found)} {found.shape}"
                raise InputError(f"{says}, not {part.dtype} {part.shape}", where=name)
        if not prod(packed.shape):
            return np.zeros(packed.shape, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            return self.unpack(packed).reshape(packed.shape)

    def round_trip(self, array: Array) -> Array:
        """What `array` comes back as."""
        return self.dequantize(self.quantize(array))

    def num_bytes(self, shape: tuple[int, ...]) -> int:
        """What is stored for an array of that shape, exactly."""
        return sum(part.num_bytes for part in self.layout(shape).values())

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        """Bits stored for each value of an array of that shape, scales included."""
        elements = prod(shape)
        return self.num_bytes(shape) * 8 / elements if elements else 0.0


def matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns: the last axis, and all others as one.

    Raises:
        InputError: the array has no axis.
    """
    if not shape:
        raise InputError("a number without dimensions has no rows", hint="Give an array.")
    return prod(shape[:-1]), shape[-1]


def ceil(a: int, b: int) -> int:
    """The quotient, rounded up."""
    return -(-a // b)


def at_least(value: Any, least: int, what: str, multiple: int = 1) -> None:
    """Raises where a size is too small, or no multiple.

    Raises:
        UsageError: it is.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least or value % multiple:
        wanted = f"a multiple of {multiple}" if multiple > 1 else "a whole number"
        raise UsageError(f"is {value!r}", where=what, hint=f"Give {wanted} from {least} on.")


def one_of(value: Any, allowed: tuple[Any, ...], what: str) -> None:
    """Raises where a setting is none of those allowed.

    Raises:
        UsageError: it is not.
    """
    if value not in allowed:
        raise UsageError(f"is {value!r}", where=what, hint=f"Give one of {', '.join(map(str, allowed))}.")


def refuse_infinite(absmax: Array, what: str = "NaN or infinite") -> None:
    """Raises where the largest magnitudes tell of a NaN or an infinity: numpy's maximum hands NaN on.

    Raises:
        InputError: they do.
    """
    if not np.isfinite(absmax).all():
        raise InputError(f"a value is {what}, which would spoil all that share its scale")
