"""Every number of bf16 and fp16, against definitions written out: the nearest code, half a step, ml_dtypes' casts."""

import ml_dtypes
import numpy as np
import pytest
from golden import same

from weigh.quant import codebooks, get
from weigh.quant.arrays import rounded_to_half
from weigh.quant.floats import to_e2m1

SOURCES = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16}
CODES = {
    "nf4": (64, codebooks.NF4),
    "fp4": (64, codebooks.FP4),
    "dynamic": (256, codebooks.dynamic_map()),
    "dynamic_unsigned": (256, codebooks.dynamic_map(signed=False)),
}


def every(source):
    return np.arange(1 << 16, dtype=np.uint16).view(SOURCES[source])


def finite(source, columns):
    """As rows of neighbours, mixed so that small ones share their scales with large ones in every second row."""
    found = every(source)
    found = found[np.isfinite(found.astype(np.float32))]
    found = found[: found.size // (2 * columns) * (2 * columns)]
    half = found.size // 2
    shuffled = np.random.default_rng(0).permutation(half)
    return np.concatenate([found[:half], found[half:][shuffled]]).reshape(-1, columns)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", CODES)
def test_codes_are_the_nearest(name, source):
    block, table = CODES[name]
    values = finite(source, block)
    parts = get(name).quantize(values).parts
    codes = parts["codes"].reshape(-1)
    if block == 64:
        codes = np.stack([codes >> 4, codes & 15], axis=1).reshape(-1)
    absmax = np.abs(values.astype(np.float32)).max(axis=1, keepdims=True)
    assert (parts["absmax"] == absmax.ravel()).all()
    scaled = (values * (np.float32(1) / np.maximum(absmax, np.float32(1e-38)))).clip(-1, 1).astype(np.float64)
    distance = np.abs(scaled.reshape(-1, 1) - table.astype(np.float64))
    chosen = np.take_along_axis(distance, codes[:, None].astype(np.int64), axis=1)[:, 0]
    assert (chosen <= distance.min(axis=1) + 2**-25).all()  # borders between values are rounded to fp32 once


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("name", "target", "largest"),
    [
        ("cast_fp8_e4m3", ml_dtypes.float8_e4m3fn, 448),
        ("cast_fp8_e5m2", ml_dtypes.float8_e5m2, None),
        ("cast_bf16", ml_dtypes.bfloat16, None),
        ("cast_fp16", np.float16, None),
    ],
)
def test_casts(name, target, largest, source):
    values = every(source)
    wide = values.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = (wide if largest is None else wide.clip(-largest, largest)).astype(target).astype(np.float32)
        found = get(name).round_trip(values)
    assert np.array_equal(found, expected, equal_nan=True)
    assert (np.signbit(found) == np.signbit(expected))[~np.isnan(expected)].all()


def test_rounding_to_half_precision():
    bits = np.arange(0, 1 << 32, 1009, dtype=np.uint64).astype(np.uint32)
    ties = (np.arange(1 << 16, dtype=np.uint32) << 13) + np.uint32((112 << 23) + (1 << 12))  # midway between two
    values = np.concatenate([bits.view(np.float32), ties.view(np.float32)])
    values = values[np.abs(values) < 65520]
    with np.errstate(under="ignore"):
        expected = values.astype(np.float16).astype(np.float32)
    assert same(rounded_to_half(values), expected)


@pytest.mark.parametrize("source", SOURCES)
def test_e2m1(source):
    values = finite(source, 32).astype(np.float32)
    expected = values.clip(-6, 6).astype(ml_dtypes.float4_e2m1fn)
    assert (to_e2m1(values) == expected.view(np.uint8)).all()


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("name", "columns", "steps"),
    [
        ("absmax_row", 128, 127),
        ("absmax_block", 64, 127),
        ("int4", 128, 7.5),
        ("int8_channel", 128, 127.5),
        ("q8_0", 32, 127),
        ("mxfp8", 32, None),
        ("mxfp4", 32, None),
    ],
)
def test_no_value_is_off_by_more_than_a_step(name, columns, steps, source):
    values = finite(source, columns)
    wide = values.astype(np.float64)
    largest = np.abs(wide).max(axis=1, keepdims=True)
    if name == "q8_0":  # whose scales are fp16
        fits = ((largest < 60000) & (largest > 1)).ravel()
        values, wide, largest = values[fits], wide[fits], largest[fits]
    fits = (largest < 2.0**126).ravel()  # codes of more than the largest number stand for more than fp32 has
    if name != "absmax_row":
        values, wide, largest = values[fits], wide[fits], largest[fits]
    off = np.abs(get(name).round_trip(values).astype(np.float64) - wide)
    normal = (largest > 1e-30).ravel()  # below, scales themselves are rounded to few bits
    assert (off[~normal] <= 2 * largest[~normal]).all()
    off, wide, largest = off[normal], wide[normal], largest[normal]
    if name == "mxfp8":  # three bits of fraction; the rule "floor" clips what lies beyond 448 of 512
        assert (off <= np.maximum(np.abs(wide) / 7, largest * 2**-16)).all()
    elif name == "mxfp4":
        assert (off <= np.maximum(np.abs(wide) / 3, largest / 8)).all()
    else:
        whole = 1 if name == "int4" else 0.5  # the largest, if positive, lies half a step beyond the last code
        rounded = 2**-11 if name == "q8_0" else 2**-20  # of the scale
        assert (off <= largest * (whole / steps + rounded)).all()
