"""A scale for every block of values, in the order of memory: linear int8, and the dynamic 8-bit maps.

Blocks keep the damage of one large value to themselves (Dettmers et al. 2021, arXiv:2110.02861). Dynamic codes are
the nearest value of the map to `x * (1 / absmax)`, as the CUDA kernel of bitsandbytes finds it. Its CPU kernel looks
up the upper 16 bits of a linear grid instead and does not even map zero to zero; that is not followed. torchao
divides and rounds ties up (`ties_up`). The signed map has no -1: a block's largest value, if negative, comes back
0.7 % too small. A block whose absmax is below 1e-38 is scaled as if it were 1e-38.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from weigh.dtypes import FLOAT32, INT8, UINT8
from weigh.quant import codebooks, kernels
from weigh.quant.absmax import INVERSE, LEVELS
from weigh.quant.arrays import in_blocks, pieces
from weigh.quant.base import Packed, Part, Quantizer, at_least, ceil, refuse_infinite
from weigh.records import dataclass

LEAST = np.float32(1e-38)
"""The least absmax that is divided by, as in bitsandbytes; what is stored is the true one."""


@dataclass(frozen=True, slots=True)
class BlockAbsmax(Quantizer):
    """Linear int8: `q = round(127 / absmax * x)`."""

    block: int = 64
    """Values that share a scale."""

    def __post_init__(self) -> None:
        at_least(self.block, 1, "block")

    def layout(self, shape: tuple[int, ...]) -> dict[str, Part]:
        return {"codes": Part(shape, INT8), "absmax": Part((ceil(prod(shape), self.block),), FLOAT32)}

    def cut(self, shape: tuple[int, ...]) -> int:
        return self.block

    def pack(self, array: Any) -> dict[str, Any]:
        codes, absmax = np.empty(array.size, np.int8), np.empty(ceil(array.size, self.block), np.float32)
        by_kernel = kernels.quantize(kernels.INT8, array, self.block, codes, absmax)
        for piece, numbers in () if by_kernel else in_blocks(array, self.block):
            absmax[piece] = found = largest(numbers)
            scaled = numbers * (LEVELS / np.maximum(found, LEAST))[:, None]
            np.rint(scaled, out=scaled)
            at = slice(piece.start * self.block, piece.stop * self.block)
            codes[at] = scaled.reshape(-1)[: codes[at].size]
        refuse_infinite(absmax)
        return {"codes": codes.reshape(array.shape), "absmax": absmax}

    def unpack(self, packed: Packed) -> Any:
        values = scaled_blocks(packed.parts["codes"], packed.parts["absmax"] * INVERSE, self.block)
        return values


@dataclass(frozen=True, slots=True)
class Dynamic(Quantizer):
    """8-bit codes of the dynamic map."""

    block: int = 256
    """Values that share a scale: 2,048 in the paper, 256 in bitsandbytes since release 0.44."""
    signed: bool = True
    """The signed map, or the one for squares."""
    ties_up: bool = False
    """torchao's arithmetic: divide by absmax, and round what lies midway up."""

    def __post_init__(self) -> None:
        at_least(self.block, 1, "block")

    def layout(self, shape: tuple[int, ...]) -> dict[str, Part]:
        return {"codes": Part(shape, UINT8), "absmax": Part((ceil(prod(shape), self.block),), FLOAT32)}

    def cut(self, shape: tuple[int, ...]) -> int:
        return self.block

    def pack(self, array: Any) -> dict[str, Any]:
        book = codebooks.dynamic(self.signed, self.ties_up)
        codes, absmax = np.empty(array.size, np.uint8), np.empty(ceil(array.size, self.block), np.float32)
        table = () if self.ties_up else codebooks.table(book)
        by_kernel = bool(table) and kernels.quantize(kernels.TABLE, array, self.block, codes, absmax, *table)
        for piece, numbers in () if by_kernel else in_blocks(array, self.block):
            absmax[piece] = found = largest(numbers)
            scaled = normalized(numbers, found, divide=self.ties_up)
            at = slice(piece.start * self.block, piece.stop * self.block)
            codes[at] = book.nearest(scaled).reshape(-1)[: codes[at].size]
        refuse_infinite(absmax)
        return {"codes": codes.reshape(array.shape), "absmax": absmax}

    def unpack(self, packed: Packed) -> Any:
        book = codebooks.dynamic(self.signed, self.ties_up)
        return scaled_blocks(packed.parts["codes"], packed.parts["absmax"], self.block, book.values)


def largest(blocks: Any) -> Any:
    """The largest magnitude of every block; NaN where it has one.

    Magnitudes of floats are ordered as their bits are, NaN above infinity, and numpy is faster with integers.
    """
    return (blocks.view(np.int32) & np.int32(0x7FFFFFFF)).max(axis=1).view(np.float32)


def normalized(blocks: Any, absmax: Any, divide: bool = False) -> Any:
    """Blocks between -1 and 1; `divide` rounds once, the reciprocal twice."""
    bounded = np.maximum(absmax, LEAST)[:, None]
    scaled = blocks / bounded if divide else blocks * (np.float32(1) / bounded)
    return np.clip(scaled, np.float32(-1), np.float32(1), out=scaled)


def scaled_blocks(codes: Any, scales: Any, block: int, values: Any = None) -> Any:
    """Each code, or the value that it stands for, times the scale of its block; flat, fp32."""
    flat = codes.reshape(-1)
    out = np.empty(flat.size, np.float32)
    kind = kernels.INT8 if values is None else kernels.TABLE
    if kernels.dequantize(kind, flat, scales, block, out, b"" if values is None else values):
        return out
    full = flat.size // block
    for piece in pieces(full, block):
        at = slice(piece.start * block, piece.stop * block)
        view = out[at].reshape(-1, block)
        numbers = flat[at].reshape(-1, block)
        if values is not None:
            numbers = np.take(values, numbers, out=view, mode="clip")
        np.multiply(numbers, scales[piece, None], out=view, dtype=np.float32)
    rest = flat[full * block :]
    if rest.size:
        out[full * block :] = (rest if values is None else values[rest]) * scales[full]
    return out
