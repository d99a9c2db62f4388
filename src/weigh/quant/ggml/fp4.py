"""MXFP4 and NVFP4 as GGML packs them: the scale before the codes, halves of a block in the halves of a byte.

Unlike the OCP's rounding, what lies midway goes to the smaller magnitude, and no code is minus zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from weigh.quant.blockwise import largest
from weigh.quant.floats import E2M1, E2M1_VALUES
from weigh.quant.ggml.common import from_nibbles, halves_in_nibbles

_BORDERS = (E2M1[:-1] + E2M1[1:]) / 2


def _codes(values: Any, scale: Any) -> Any:
    """The nearest of the table times the scale [blocks, 1]."""
    magnitudes = np.abs(values)
    codes = np.zeros(values.shape, np.uint8)
    for border in _BORDERS:
        codes += magnitudes > border * scale
    codes[np.broadcast_to(scale == 0, codes.shape)] = 0
    return codes | ((values < 0) & (codes > 0)).astype(np.uint8) << np.uint8(3)


def _encode_mxfp4(values: Any) -> Any:
    absmax = largest(values)
    # As C's log2f, which rounds to the whole number above for the last numbers below a power of two.
    power = np.floor(np.log2(absmax.astype(np.float64)).astype(np.float32))
    exponent = np.where(absmax > 0, np.maximum(power + np.float32(125), 0), 0).astype(np.uint8)[:, None]
    return np.concatenate([exponent, halves_in_nibbles(_codes(values, _power(exponent)))], axis=1)


def _decode_mxfp4(blocks: Any) -> Any:
    return E2M1_VALUES[from_nibbles(blocks[:, 1:])] * _power(blocks[:, :1])


def _power(exponent: Any) -> Any:
    return np.ldexp(np.float32(1), exponent.astype(np.int32) - 127)


def _encode_nvfp4(values: Any) -> Any:
    parts = values.reshape(-1, 16)
    scale = _to_ue4m3(largest(parts) / np.float32(6))
    codes = halves_in_nibbles(_codes(parts, _UE4M3[scale][:, None]))
    return np.concatenate([scale.reshape(-1, 4), codes.reshape(-1, 32)], axis=1)


def _decode_nvfp4(blocks: Any) -> Any:
    scale = _UE4M3[blocks[:, :4]].reshape(-1, 1)
    return (E2M1_VALUES[from_nibbles(blocks[:, 4:].reshape(-1, 8))] * scale).reshape(-1, 64)


def _ue4m3() -> Any:
    """E4M3 whose sign is not read; 0x7F, and only this, is no number and taken for 0."""
    code = np.arange(256)
    exponent, fraction = code >> 3 & 15, code & 7
    values = np.where(exponent == 0, fraction * 2.0**-9, (1 + fraction / 8) * 2.0 ** (exponent - 7.0))
    values[127] = 0
    return values.astype(np.float32)


def _to_ue4m3(values: Any) -> Any:
    """Rounded with halves up, not to even."""
    bounded = np.minimum(values, np.float32(448))
    bits = bounded.view(np.uint32)
    exponent = (bits >> 23).astype(np.int32) - 120
    normal = (exponent << 3) + (bits >> 20 & 7).astype(np.int32) + (bits >> 19 & 1).astype(np.int32)
    subnormal = np.minimum((bounded * np.float32(512) + np.float32(0.5)).astype(np.int32), 7)
    return np.where(exponent <= 0, subnormal, np.minimum(normal, 0x7E)).astype(np.uint8)


_UE4M3 = _ue4m3()
ENCODE = {"mxfp4": _encode_mxfp4, "nvfp4_ggml": _encode_nvfp4}
DECODE = {"mxfp4": _decode_mxfp4, "nvfp4_ggml": _decode_nvfp4}
