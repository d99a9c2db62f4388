"""Microscaling: blocks of 32 values of a row with one power of two (OCP MX 1.0), and NVIDIA's FP4 in blocks of 16.

MX: the scale's exponent comes from the block's largest magnitude. Four rules are about (torchao 0.18): "floor", the
specification's, by which the largest magnitudes clip; "ceil"; "rceil", NVIDIA's (`absmax / max` rounded up to a
power of two); "even", which rounds the magnitude to the element's precision first (compressed-tensors' MXFP4). The
least scale that is divided by is 2^-126; zeros stay zeros. 4-bit codes lie two in a byte, the first in the lower
half.

NVFP4: a block's scale is E4M3, and one fp32 scale of the tensor puts the largest of them at 448. compressed-tensors
stores `448 * 6 / absmax`, by which it divides; torchao its inverse, or none, and it multiplies values by
reciprocals.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from weigh import dtypes
from weigh.dtypes import FLOAT8_E4M3, FLOAT32, UINT8
from weigh.errors import InputError
from weigh.quant.arrays import numpy_dtype, pieces
from weigh.quant.base import Packed, Part, Quantizer, matrix, one_of, refuse_infinite
from weigh.quant.bits import pack_nibbles, unpack_nibbles
from weigh.quant.blockwise import largest
from weigh.quant.floats import E2M1_VALUES, to_e2m1, to_float8
from weigh.records import dataclass

MX_BLOCK, NV_BLOCK = 32, 16
_LARGEST_POWER = {"fp4_e2m1": 2, "fp8_e4m3": 8, "fp8_e5m2": 15}
_E4M3 = numpy_dtype(FLOAT8_E4M3)
LEAST_SCALE = np.float32(2.0**-6)
"""E4M3's least normal number, below which torchao's scales do not go; compressed-tensors stores zeros as 0.125."""


@dataclass(frozen=True, slots=True)
class Mx(Quantizer):
    """MXFP4 and MXFP8."""

    element: str = "fp4_e2m1"
    """Of the codes: "fp4_e2m1", "fp8_e4m3" or "fp8_e5m2"."""
    rule: str = "floor"
    """How the scale is found: "floor", "ceil", "even" or "rceil"."""

    def __post_init__(self) -> None:
        one_of(self.element, tuple(_LARGEST_POWER), "element")
        one_of(self.rule, ("floor", "ceil", "even", "rceil"), "rule")

    def layout(self, shape: tuple[int, ...]) -> dict[str, Part]:
        return _layout(shape, MX_BLOCK, self.element, Part((*shape[:-1], shape[-1] // MX_BLOCK if shape else 0), UINT8))

    def cut(self, shape: tuple[int, ...]) -> int:
        return matrix(shape)[1]

    def pack(self, array: Any) -> dict[str, Any]:
        blocks = array.reshape(-1, MX_BLOCK)
        exponents = np.empty(len(blocks), np.uint8)
        codes = _codes_for(self.element, len(blocks), MX_BLOCK)
        for piece in pieces(len(blocks), MX_BLOCK):
            values = blocks[piece].astype(np.float32, copy=False)
            absmax = largest(values)
            refuse_infinite(absmax)
            exponents[piece] = self._exponents(absmax)
            codes[piece] = _encode(values / _power(exponents[piece])[:, None], self.element)
        return _shaped(array.shape, codes, exponents)

    def unpack(self, packed: Packed) -> Any:
        scale = np.ldexp(np.float32(1), packed.parts["scale"].reshape(-1).astype(np.int32) - 127)
        return _decode(packed.parts["codes"], self.element, MX_BLOCK) * scale[:, None]

    def _exponents(self, absmax: Any) -> Any:
        """Biased by 127."""
        dtype, power = dtypes.get(self.element), _LARGEST_POWER[self.element]
        if self.rule == "rceil":
            quotient = (absmax / np.float32(dtype.max)).view(np.uint32)
            exponent, fraction = quotient >> 23, quotient & 0x7FFFFF
            # A subnormal quotient of at most half the least normal number stays at the exponent 0.
            up = (fraction > 0) & ((exponent > 0) | (fraction > 0x400000))
            return np.minimum(exponent + up, 254)
        bits = absmax.view(np.uint32).astype(np.int64)
        if self.rule == "even":
            assert dtype.mantissa_bits is not None
            bits = (bits + (1 << (22 - dtype.mantissa_bits))) & ~0x7FFFFF
        exponent = (bits >> 23) - power + ((bits & 0x7FFFFF > 0) if self.rule == "ceil" else 0)
        return np.clip(exponent, 0, 255)


@dataclass(frozen=True, slots=True)
class NvFp4(Quantizer):
    """NVFP4."""

    dialect: str = "compressed-tensors"
    """Whose arithmetic: "compressed-tensors", "torchao", or "torchao-blocks", which has no scale of the tensor."""
    from_stored: bool = True
    """compressed-tensors: whether codes are found with the stored scales, or with those before they were rounded, which
    is what it does where a scheme does not say `scale_dtype`."""
    amax: float | None = None
    """The largest magnitude of the tensor, where it is known before all values are."""

    def __post_init__(self) -> None:
        one_of(self.dialect, ("compressed-tensors", "torchao", "torchao-blocks"), "dialect")

    def layout(self, shape: tuple[int, ...]) -> dict[str, Part]:
        scales = Part((*shape[:-1], shape[-1] // NV_BLOCK if shape else 0), FLOAT8_E4M3)
        parts = _layout(shape, NV_BLOCK, "fp4_e2m1", scales)
        return parts if self.dialect == "torchao-blocks" else {**parts, "global_scale": Part((1,), FLOAT32)}

    def cut(self, shape: tuple[int, ...]) -> int:
        return matrix(shape)[1] if self.dialect == "torchao-blocks" else 0

    def pack(self, array: Any) -> dict[str, Any]:
        blocks = array.reshape(-1, NV_BLOCK)
        absmax = np.empty(len(blocks), np.float32)
        for piece in pieces(len(blocks), NV_BLOCK):
            absmax[piece] = largest(blocks[piece].astype(np.float32, copy=False))
        refuse_infinite(absmax)
        whole = np.float32(absmax.max(initial=0) if self.amax is None else self.amax)
        stored, scale, factor, of_tensor = self._scales(absmax, whole)
        codes = _codes_for("fp4_e2m1", len(blocks), NV_BLOCK)
        for piece in pieces(len(blocks), NV_BLOCK):
            values = blocks[piece].astype(np.float32, copy=False)
            scaled = values * factor[piece, None] if factor is not None else values / scale[piece, None]
            codes[piece] = _encode(scaled, "fp4_e2m1")
        parts = _shaped(array.shape, codes, stored)
        return parts if self.dialect == "torchao-blocks" else {**parts, "global_scale": np.array([of_tensor])}

    def unpack(self, packed: Packed) -> Any:
        scale = packed.parts["scale"].reshape(-1).astype(np.float32)
        if self.dialect == "compressed-tensors":
            scale = scale / packed.parts["global_scale"]
        elif self.dialect == "torchao":
            scale = scale * packed.parts["global_scale"]
        return _decode(packed.parts["codes"], "fp4_e2m1", NV_BLOCK) * scale[:, None]

    def _scales(self, absmax: Any, whole: Any) -> tuple[Any, Any, Any, Any]:
        """As stored, as divided by, or as multiplied by, and the tensor's."""
        of_block, one = absmax / np.float32(6), np.float32(1)
        if self.dialect == "compressed-tensors":
            of_tensor = np.float32(448 * 6) / np.maximum(whole, np.finfo(np.float32).tiny)
            of_tensor = of_tensor if np.isfinite(of_tensor) else one
            scale = of_tensor * of_block
            stored = to_float8(scale, FLOAT8_E4M3)
            stored = np.where(stored == 0, np.array(0.125, _E4M3), stored)
            scale = stored.astype(np.float32) if self.from_stored else scale
            return stored, np.where(scale == 0, np.float32(0.125), scale) / of_tensor, None, of_tensor
        of_tensor = one if self.dialect == "torchao-blocks" else whole / np.float32(448 * 6)
        relative = np.where(of_tensor == 0, LEAST_SCALE, of_block / of_tensor)
        stored = np.clip(relative, LEAST_SCALE, np.float32(448)).astype(_E4M3)
        inverse = one / of_tensor if of_tensor > 0 else one
        return stored, None, inverse / stored.astype(np.float32), of_tensor


def _layout(shape: tuple[int, ...], block: int, element: str, scales: Part) -> dict[str, Part]:
    columns = matrix(shape)[1]
    if columns % block:
        raise InputError(f"rows of {columns:,} values are no whole blocks of {block}", hint="Pad them, or keep it.")
    packed = element == "fp4_e2m1"
    codes = Part((*shape[:-1], columns // 2), UINT8) if packed else Part(shape, dtypes.get(element))
    return {"codes": codes, "scale": scales}


def _codes_for(element: str, blocks: int, block: int) -> Any:
    if element == "fp4_e2m1":
        return np.empty((blocks, block // 2), np.uint8)
    return np.empty((blocks, block), numpy_dtype(dtypes.get(element)))


def _encode(scaled: Any, element: str) -> Any:
    return pack_nibbles(to_e2m1(scaled)) if element == "fp4_e2m1" else to_float8(scaled, dtypes.get(element))


def _decode(codes: Any, element: str, block: int) -> Any:
    """Blocks of values without their scales."""
    values = E2M1_VALUES[unpack_nibbles(codes)] if element == "fp4_e2m1" else codes.astype(np.float32)
    return values.reshape(-1, block)


def _power(exponents: Any) -> Any:
    """2^(e - 127), but not below the least normal number."""
    return np.maximum(exponents.astype(np.uint32) << np.uint32(23), np.uint32(1 << 23)).view(np.float32)


def _shaped(shape: tuple[int, ...], codes: Any, scales: Any) -> dict[str, Any]:
    return {"codes": codes.reshape(*shape[:-1], -1), "scale": scales.reshape(*shape[:-1], -1)}
