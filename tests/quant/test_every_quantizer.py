"""What holds for every quantizer, whatever its arithmetic."""

import ml_dtypes
import numpy as np
import pytest
from golden import same

from weigh import dtypes
from weigh.errors import InputError, UnknownNameError, UsageError, WeighError
from weigh.quant import NAMES, arrays, get, parse
from weigh.quant.ggml import TYPES

READ_ONLY = [name for name, module in TYPES.items() if module == "grids"]
WRITTEN = [name for name in NAMES if name not in READ_ONLY]
CASTS = [name for name in NAMES if name.startswith("cast_")]
SCALED = [name for name in WRITTEN if name not in CASTS]
CHANGED = {"q1_0"}  # a sign for every value: zeros come back as the scale
rng = np.random.default_rng(7)
WEIGHT = (rng.standard_normal((8, 512)) * rng.lognormal(0, 1, (8, 1)) * 0.02).astype(np.float32)
SOURCES = [np.float32, ml_dtypes.bfloat16, np.float16]


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("shape", [(8, 512), (0, 256), (3, 256), (2, 4, 512), (256,)])
def test_what_is_stored_is_what_was_said(name, shape):
    quantizer = get(name)
    for source in SOURCES:
        array = np.resize(WEIGHT, shape).astype(source)
        packed, layout = quantizer.quantize(array), quantizer.layout(shape)
        assert list(packed.parts) == list(layout)
        for key, part in layout.items():
            assert packed.parts[key].shape == part.shape, key
            assert arrays.dtype_of(packed.parts[key]) is part.dtype, key
        assert packed.num_bytes == quantizer.num_bytes(shape)
        values = quantizer.dequantize(packed)
        assert values.dtype == np.float32
        assert values.shape == shape


@pytest.mark.parametrize("name", WRITTEN)
def test_narrow_sources_are_the_same_as_their_values(name):
    for source in SOURCES[1:]:
        array = WEIGHT.astype(source)
        if name.startswith(("sparse", "cast")):
            array = array.astype(ml_dtypes.bfloat16).astype(source)  # they store the source's own values
        narrow, wide = get(name).quantize(array), get(name).quantize(array.astype(np.float32))
        for key, part in wide.parts.items():
            assert same(narrow.parts[key], part), key


@pytest.mark.parametrize("name", WRITTEN)
def test_pieces_make_the_whole(name):
    quantizer = get(name)
    step = quantizer.cut((64, 512))
    if not step:
        pytest.skip("only the whole can be quantized")
    array = np.resize(WEIGHT, (1024, 512))
    flat, whole = array.reshape(-1), quantizer.quantize(array)
    step *= -(-50_000 // step)
    pieces = [flat[i : i + step] for i in range(0, flat.size, step)]
    shaped = [p.reshape(-1, 512) if p.size % 512 == 0 else p for p in pieces]
    parts = [quantizer.quantize(p).parts for p in shaped]
    for key, part in whole.parts.items():
        joined = np.concatenate([p[key].reshape(-1) for p in parts])
        assert same(joined, part.reshape(-1)), key


@pytest.mark.parametrize("name", SCALED)
def test_what_is_not_finite_is_refused(name):
    for bad in (np.nan, np.inf, -np.inf):
        array = WEIGHT.copy()
        array[5, 300] = bad
        with pytest.raises(InputError, match="NaN or infinite"):
            get(name).quantize(array)


@pytest.mark.parametrize("name", WRITTEN)
def test_zeros_come_back(name):
    if name in CHANGED:
        pytest.skip("it has no zero")
    array = WEIGHT.copy()
    array[2] = 0
    assert (
        not get(name).round_trip(array)[2].any() or name.endswith("double") or "tensor" in name or "zeropoint" in name
    )
    assert not get(name).round_trip(np.zeros((2, 512), np.float32)).any()


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("exponent", [-149, -140, -127, -126, -125, -100, 100])
def test_tiny_and_huge_values_stay_finite(name, exponent):
    array = np.ldexp(np.float32(1), exponent) * np.sign(WEIGHT)
    if exponent == 100 and (name == "int8" or (name in TYPES and "fp4" not in name)):
        with pytest.raises(InputError, match="fp16"):
            get(name).quantize(array)
        return
    values = get(name).round_trip(array)
    if name not in CASTS:
        assert np.isfinite(values).all()
        assert np.abs(values).max() <= 2 * np.abs(array).max() or name in CHANGED


@pytest.mark.parametrize("name", WRITTEN)
def test_no_error_beyond_half_a_step(name):
    """A loose bound that no method may break: the published relative RMSE on normal values, with room."""
    limits = {
        "cast": 0.06,
        "sparse": 0.6,
        "q1_0": 0.65,
        "q2_0": 0.8,
        "tq": 0.82,
        "q2_k": 0.35,
        "q3_k": 0.2,
        "zero": 0.05,
    }
    limit = next((v for k, v in limits.items() if name.startswith(k)), 0.16)
    normal = np.random.default_rng(1).standard_normal((64, 1024)).astype(np.float32)
    if name == "dynamic_unsigned":
        normal = np.abs(normal)
    difference = get(name).round_trip(normal) - normal
    assert np.sqrt(np.mean(difference**2)) < limit


@pytest.mark.parametrize("name", ["nf4", "int4", "mxfp4", "nvfp4", "fp8_block", "int8", "sparse", "dynamic"])
def test_ragged_shapes(name):
    array = np.resize(WEIGHT, (7, 300))
    quantizer = get(name)
    if name in ("mxfp4", "nvfp4"):
        with pytest.raises(InputError, match="no whole blocks"):
            quantizer.quantize(array)
        return
    values = quantizer.round_trip(array)
    assert values.shape == (7, 300)
    assert np.sqrt(np.mean((values - array) ** 2)) < 0.35 * np.sqrt(np.mean(array**2))


@pytest.mark.parametrize("name", WRITTEN)
def test_odd_shapes_are_stored_or_refused(name):
    for shape in ((3, 5), (1, 1), (1,), (2, 0), (5, 33), (1, 3, 7)):
        array = np.resize(np.abs(WEIGHT), shape)
        quantizer = get(name)
        try:
            layout = quantizer.layout(shape)
        except InputError as error:
            assert "whole" in str(error)  # noqa: PT017  which is right depends on the method
            continue
        packed = quantizer.quantize(array)
        assert {key: part.shape for key, part in packed.parts.items()} == {k: part.shape for k, part in layout.items()}
        values = quantizer.dequantize(packed)
        assert values.shape == shape
        assert np.abs(values - array).max(initial=0) <= np.abs(array).max(initial=0)


def test_pruning_keeps_the_largest():
    array = WEIGHT[:, :64]
    found = get("sparse_24", dtype="fp32").round_trip(array).reshape(-1, 4)
    fours = array.reshape(-1, 4)
    assert ((found != 0).sum(axis=1) == 2).all()
    assert same(found[found != 0], fours[found != 0])
    assert (np.sort(np.abs(found), axis=1)[:, 2:] == np.sort(np.abs(fours), axis=1)[:, 2:]).all()
    quantizer = get("sparse", sparsity=0.75, dtype="fp32")
    packed = quantizer.quantize(array)
    kept = np.sort(np.abs(array).ravel())[-array.size // 4 :]
    assert (np.sort(np.abs(packed.parts["values"])) == kept).all()
    assert packed.parts["row_offsets"][1, 0] == np.unpackbits(packed.parts["mask"][0]).sum()
    equal = get("sparse", dtype="fp32").round_trip(np.ones((2, 8), np.float32))
    assert equal.tolist() == [[1] * 8, [0] * 8]  # of equal ones the earlier


def test_bytes_of_the_literature():
    shape = (4096, 4096)
    bits = {name: round(get(name).bits_per_weight(shape), 4) for name in NAMES}
    assert bits["nf4"] == 4.5
    assert bits["nf4_double"] == 4.127  # 4 + 8 / 64 + 32 / (64 * 256)
    assert bits["dynamic"] == 8.125
    assert bits["fp8_block"] == 8.002
    assert bits["int8"] == 8.0078
    assert bits["mxfp4"] == bits["mxfp4_ggml"] == 4.25
    for name in TYPES:
        assert bits.get(name, get("mxfp4_ggml").bits_per_weight(shape)) == dtypes.get(name).bits_per_element


def test_bad_input():
    with pytest.raises(UnknownNameError, match="nf5"):
        get("nf5")
    with pytest.raises(UnknownNameError, match="blok"):
        get("nf4", blok=64)
    for spec in ("nf4:block=3", "nf4:code=nf5", "int4:bits=9", "fp8:scope=planet", "sparse:sparsity=2", "int4:group=0"):
        with pytest.raises(UsageError):
            parse(spec)
    with pytest.raises(InputError, match="fp64"):
        get("nf4").quantize(np.zeros(4))
    with pytest.raises(InputError, match="without dimensions"):
        get("absmax_row").quantize(np.zeros((), np.float32))
    packed = get("nf4").quantize(WEIGHT)
    packed.parts["codes"] = packed.parts["codes"][1:]
    with pytest.raises(InputError, match="codes: is uint8"):
        get("nf4").dequantize(packed)
    with pytest.raises(WeighError, match="whole blocks"):
        get("q4_k").layout((4, 300))
