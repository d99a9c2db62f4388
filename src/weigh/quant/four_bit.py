"""NF4 and FP4 as bitsandbytes stores them, with or without quantized scales (QLoRA, arXiv:2305.14314).

Two codes a byte, the first in the upper half, in the order of memory. A code is the nearest value of the table to
`x * (1 / absmax)`, ties to the lower, as the CPU's back end finds it (the CUDA kernel divides alike; its zeros
may be -0 in FP4, and a block of zeros has code 0 in NF4: same values). The CPU's back end divides in the last block
where it is not full; here every block is alike.

Double quantization stores the scales as signed dynamic 8-bit codes, in blocks of 256, of their distance from their
mean (bitsandbytes; the paper says FP8). The codes are the nearest, which bitsandbytes' CPU kernel misses in 0.2 % of
cases; the mean is exact and rounded once, where the reference's depends on the order in which a machine adds.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from weigh.dtypes import FLOAT32, UINT8
from weigh.quant import codebooks, kernels
from weigh.quant.arrays import in_blocks, pieces
from weigh.quant.base import Packed, Part, Quantizer, at_least, ceil, one_of, refuse_infinite
from weigh.quant.blockwise import Dynamic, largest, normalized
from weigh.records import dataclass

NESTED = Dynamic(block=256)


@dataclass(frozen=True, slots=True)
class FourBit(Quantizer):
    """Its settings."""

    code: str = "nf4"
    """The table: "nf4" or "fp4"."""
    block: int = 64
    """Values that share a scale; even, so that blocks fill their bytes."""
    double_quantization: bool = False
    """Whether the scales are quantized again."""

    def __post_init__(self) -> None:
        one_of(self.code, ("nf4", "fp4"), "code")
        at_least(self.block, 2, "block", multiple=2)

    def layout(self, shape: tuple[int, ...]) -> dict[str, Part]:
        elements = prod(shape)
        blocks = ceil(elements, self.block)
        codes = Part((ceil(elements, 2), 1), UINT8)
        if not self.double_quantization:
            return {"codes": codes, "absmax": Part((blocks,), FLOAT32)}
        return {
            "codes": codes,
            "absmax": Part((blocks,), UINT8),
            "nested_absmax": Part((ceil(blocks, NESTED.block),), FLOAT32),
            "nested_offset": Part((), FLOAT32),
        }

    def cut(self, shape: tuple[int, ...]) -> int:
        return 0 if self.double_quantization else self.block

    def pack(self, array: Any) -> dict[str, Any]:
        book = self._book()
        codes, absmax = np.empty((ceil(array.size, 2), 1), np.uint8), np.empty(ceil(array.size, self.block), np.float32)
        tables = (book.borders, book.order)
        by_kernel = kernels.quantize(kernels.FOUR_BIT, array, self.block, codes, absmax, *tables)
        for piece, numbers in () if by_kernel else in_blocks(array, self.block):
            absmax[piece] = found = largest(numbers)
            nibbles = book.nearest(normalized(numbers, found)).reshape(-1)
            at = slice(piece.start * self.block // 2, piece.stop * self.block // 2)
            codes[at, 0] = (nibbles[::2] << 4 | nibbles[1::2])[: len(codes[at])]
        refuse_infinite(absmax)
        return {"codes": codes, **(nest(absmax) if self.double_quantization else {"absmax": absmax})}

    def unpack(self, packed: Packed) -> Any:
        absmax = unnest(packed.parts) if self.double_quantization else packed.parts["absmax"]
        flat, elements = packed.parts["codes"].reshape(-1), prod(packed.shape)
        book = self._book().values
        out = np.empty(elements, np.float32)
        if kernels.dequantize(kernels.FOUR_BIT, flat, absmax, self.block, out, book):
            return out
        pairs = np.stack([np.repeat(book, 16), np.tile(book, 16)], axis=1).reshape(-1).view(np.uint64)
        out = np.empty(ceil(elements, self.block) * self.block, np.float32)
        half = self.block // 2
        for piece in pieces(len(absmax), self.block):
            bytes_ = flat[piece.start * half : piece.stop * half]
            view = out[piece.start * self.block : piece.start * self.block + 2 * bytes_.size]
            np.take(pairs, bytes_, out=view.view(np.uint64), mode="clip")
            blocks = out[piece.start * self.block : piece.stop * self.block].reshape(-1, self.block)
            blocks *= absmax[piece, None]
        return out[:elements]

    def _book(self) -> codebooks.Codebook:
        return codebooks.nf4() if self.code == "nf4" else codebooks.fp4()


def nest(absmax: Any, offset: Any = None) -> dict[str, Any]:
    """All the scales of a tensor as 8-bit codes, with their own scales and the mean that is taken off (`offset`)."""
    if offset is None:
        offset = absmax.mean(dtype=np.float64).astype(np.float32)
    packed = NESTED.quantize(absmax - offset)
    return {
        "absmax": packed.parts["codes"],
        "nested_absmax": packed.parts["absmax"],
        "nested_offset": np.array(offset, np.float32),
    }


def unnest(parts: dict[str, Any]) -> Any:
    """The scales in fp32."""
    inner = Packed({"codes": parts["absmax"], "absmax": parts["nested_absmax"]}, parts["absmax"].shape, FLOAT32)
    return NESTED.dequantize(inner) + parts["nested_offset"]
