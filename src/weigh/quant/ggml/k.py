"""Q2_K to Q6_K: blocks of 256 whose groups of 16 or 32 have small scales (and minima) with fp16 scales of their own."""

from __future__ import annotations

from typing import Any

import numpy as np

from weigh.quant.ggml.common import bits_of, from_half, half, inverse
from weigh.quant.ggml.search import NOTHING, grouped, scale_and_minimum, signed_scale, signed_scale_by_turns, summed

F = np.float32


def _per_block(of_groups: Any, size: int) -> Any:
    return of_groups[..., :-1].reshape(*of_groups.shape[:-1], -1, 256 // size)


def _stored(values: Any) -> Any:
    """As fp16 in fp32."""
    return from_half(half(values))[:, 0]


def _with_minimum(values: Any, size: int, most: int, levels: int, **search: Any) -> Any:
    """Codes [blocks, 256], scales and minima [blocks, groups] from 0 to `levels`, and the scales of both."""
    groups = grouped(values, size)
    weights = np.abs(groups)
    if size == 32:
        weights += np.sqrt(summed(groups * groups) / F(size))
    scale, least, codes = scale_and_minimum(groups, weights, most, **search)
    scale, least = _per_block(scale, size), _per_block(least, size)
    largest = np.maximum(np.stack([scale.max(axis=1), least.max(axis=1)]), F(0))
    factor = np.where(largest > 0, F(levels) / largest, F(0))
    of_scale = np.minimum(np.rint(factor[0, :, None] * scale), levels).astype(np.uint8)
    of_least = np.minimum(np.rint(factor[1, :, None] * least), levels).astype(np.uint8)
    d, d_min = (_stored(x / F(levels)) for x in largest)
    exact, taken = (d[:, None] * of_scale)[..., None], (d_min[:, None] * of_least)[..., None]
    split = values.reshape(len(values), -1, size)
    again = np.clip(np.rint((split + taken) / exact), 0, most)
    found = np.where(exact == 0, codes.T[:-1].reshape(split.shape), again).astype(np.uint8)
    return found.reshape(-1, 256), of_scale, of_least, np.concatenate([half(d), half(d_min)], axis=1)


def _scaled(values: Any, scale: Any, codes: Any, most: int) -> Any:
    """Codes from 0 found again with the stored scales [blocks, 16]; the searched ones where a scale is zero."""
    split = values.reshape(len(values), 16, 16)
    again = np.clip(np.rint(split / scale[..., None]), F(-most), F(most - 1))
    found = np.where(scale[..., None] == 0, codes.T[:-1].reshape(split.shape), again)
    return (found + F(most)).astype(np.uint8).reshape(-1, 256)


def _quarters(codes: Any) -> Any:
    """2-bit codes [blocks, 256]: of 128 values the four quarters share bytes."""
    shifted = codes.reshape(-1, 2, 4, 32) << np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    return np.bitwise_or.reduce(shifted, axis=2).reshape(-1, 64)


def _from_quarters(packed: Any) -> Any:
    return bits_of(packed.reshape(-1, 2, 32), 4, 2).swapaxes(2, 3).reshape(-1, 256)


def _encode_q2_k(values: Any) -> Any:
    codes, scale, least, of_both = _with_minimum(values, 16, 3, 15, first=-0.5, step=0.1, steps=15, by_magnitude=True)
    return np.concatenate([scale | least << np.uint8(4), _quarters(codes), of_both], axis=1)


def _decode_q2_k(blocks: Any) -> Any:
    scales, d, d_min = blocks[:, :16], from_half(blocks[:, 80:82]), from_half(blocks[:, 82:84])
    codes = _from_quarters(blocks[:, 16:80]).reshape(-1, 16, 16)
    scale, least = d * (scales & np.uint8(15)), d_min * (scales >> np.uint8(4))
    return (scale[..., None] * codes - least[..., None]).reshape(-1, 256)


def _encode_q3_k(values: Any) -> Any:
    scale, codes = signed_scale_by_turns(grouped(values, 16), 4)
    scale = _per_block(scale, 16)
    largest = np.take_along_axis(scale, np.abs(scale).argmax(axis=1)[:, None], axis=1)[:, 0]
    factor = np.where(largest != 0, F(-32) / largest, F(0))
    small = (np.clip(np.rint(factor[:, None] * scale), -32, 31) + 32).astype(np.uint8)
    small[largest == 0] = 0
    d = _stored(inverse(factor))
    found = _scaled(values, d[:, None] * (small.astype(F) - 32), codes, 4)
    high = np.packbits((found >> np.uint8(2)).reshape(-1, 8, 32), axis=1, bitorder="little").reshape(-1, 32)
    low = small[:, :8] & np.uint8(15) | small[:, 8:] << np.uint8(4)
    top = small.reshape(-1, 4, 4) >> np.uint8(4) << np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    scales = np.concatenate([low, np.bitwise_or.reduce(top, axis=1)], axis=1)
    return np.concatenate([high, _quarters(found & np.uint8(3)), scales, half(d)], axis=1)


def _decode_q3_k(blocks: Any) -> Any:
    high = bits_of(blocks[:, :32], 8).swapaxes(1, 2).reshape(-1, 256)
    codes = (_from_quarters(blocks[:, 32:96]) | high << np.uint8(2)).reshape(-1, 16, 16)
    low, top = blocks[:, 96:104], bits_of(blocks[:, 104:108], 4, 2).swapaxes(1, 2).reshape(-1, 16)
    small = np.concatenate([low & np.uint8(15), low >> np.uint8(4)], axis=1) | top << np.uint8(4)
    scale = from_half(blocks[:, 108:110]) * (small.astype(F) - F(32))
    return (scale[..., None] * (codes.astype(F) - F(4))).reshape(-1, 256)


def _six_bits(scale: Any, least: Any) -> Any:
    """Eight scales and eight minima of 6 bits in 12 bytes."""
    rest = scale[:, 4:] & np.uint8(15) | least[:, 4:] << np.uint8(4)
    tops = [x[:, :4] | x[:, 4:] >> np.uint8(4) << np.uint8(6) for x in (scale, least)]
    return np.concatenate([*tops, rest], axis=1)


def _from_six_bits(packed: Any) -> tuple[Any, Any]:
    first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:12]
    scale = [first & np.uint8(63), rest & np.uint8(15) | first >> np.uint8(6) << np.uint8(4)]
    least = [second & np.uint8(63), rest >> np.uint8(4) | second >> np.uint8(6) << np.uint8(4)]
    return np.concatenate(scale, axis=1), np.concatenate(least, axis=1)


def _pairs(codes: Any) -> Any:
    """Of 64 values the halves share bytes."""
    split = codes.reshape(-1, 4, 2, 32)
    return (split[:, :, 0] & np.uint8(15) | split[:, :, 1] << np.uint8(4)).reshape(-1, 128)


def _from_pairs(packed: Any) -> Any:
    return bits_of(packed.reshape(-1, 4, 32), 2, 4).swapaxes(2, 3).reshape(-1, 256)


def _encode_q4_k(values: Any) -> Any:
    codes, scale, least, of_both = _with_minimum(values, 32, 15, 63, first=-1.0, step=0.1, steps=20)
    return np.concatenate([of_both, _six_bits(scale, least), _pairs(codes)], axis=1)


def _encode_q5_k(values: Any) -> Any:
    codes, scale, least, of_both = _with_minimum(values, 32, 31, 63, first=-0.5, step=0.1, steps=15)
    high = np.packbits((codes >> np.uint8(4)).reshape(-1, 8, 32), axis=1, bitorder="little").reshape(-1, 32)
    return np.concatenate([of_both, _six_bits(scale, least), high, _pairs(codes)], axis=1)


def _decode_with_six_bits(blocks: Any, codes: Any) -> Any:
    small, smallest = _from_six_bits(blocks[:, 4:16])
    scale, least = from_half(blocks[:, :2]) * small, from_half(blocks[:, 2:4]) * smallest
    return (scale[..., None] * codes.reshape(-1, 8, 32) - least[..., None]).reshape(-1, 256)


def _decode_q4_k(blocks: Any) -> Any:
    return _decode_with_six_bits(blocks, _from_pairs(blocks[:, 16:]))


def _decode_q5_k(blocks: Any) -> Any:
    high = bits_of(blocks[:, 16:48], 8).swapaxes(1, 2).reshape(-1, 256)
    return _decode_with_six_bits(blocks, _from_pairs(blocks[:, 48:]) | high << np.uint8(4))


def _encode_q6_k(values: Any) -> Any:
    scale, codes = signed_scale(grouped(values, 16), 32)
    scale = _per_block(scale, 16)
    largest = np.take_along_axis(scale, np.abs(scale).argmax(axis=1)[:, None], axis=1)[:, 0]
    nothing = np.abs(largest) < NOTHING
    factor = np.where(nothing, F(0), F(-128) / largest)
    small = np.minimum(np.rint(factor[:, None] * scale), 127).astype(np.int8)
    d = _stored(inverse(factor))
    found = _scaled(values, d[:, None] * small, codes, 32).reshape(-1, 2, 4, 32)
    low = (found[:, :, :2] & np.uint8(15) | found[:, :, 2:] << np.uint8(4)).reshape(-1, 128)
    high = _quarters((found >> np.uint8(4)).reshape(-1, 256))
    packed = np.concatenate([low, high, small.view(np.uint8), half(d)], axis=1)
    packed[nothing] = 0
    return packed


def _decode_q6_k(blocks: Any) -> Any:
    low = bits_of(blocks[:, :128].reshape(-1, 2, 64), 2, 4).swapaxes(2, 3).reshape(-1, 256)
    codes = (low | _from_quarters(blocks[:, 128:192]) << np.uint8(4)).astype(F) - F(32)
    scale = from_half(blocks[:, 208:210]) * np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    return (scale[..., None] * codes.reshape(-1, 16, 16)).reshape(-1, 256)


ENCODE = {"q2_k": _encode_q2_k, "q3_k": _encode_q3_k, "q4_k": _encode_q4_k, "q5_k": _encode_q5_k, "q6_k": _encode_q6_k}
DECODE = {"q2_k": _decode_q2_k, "q3_k": _decode_q3_k, "q4_k": _decode_q4_k, "q5_k": _decode_q5_k, "q6_k": _decode_q6_k}
