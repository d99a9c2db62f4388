import copy
import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weigh import dtypes
from weigh.dtypes import GGML_TYPES, TABLE, DType, get, promote
from weigh.errors import InputError, UnknownNameError, WeighError

DATA = Path(__file__).parent / "data"
PROMOTION = json.loads((DATA / "torch_promotion.json").read_text())["table"]
LIMITS = json.loads((DATA / "float_limits.json").read_text())["table"]
GGML = json.loads((DATA / "ggml_sizes.json").read_text())["rows"]
EVERY = pytest.mark.parametrize("dtype", TABLE.values(), ids=str)


@EVERY
def test_every_row_is_whole(dtype: DType) -> None:
    elements = dtype.elements_per_block
    assert elements > 0
    assert elements & (elements - 1) == 0, "bits_per_element is exact only for powers of two"
    assert dtype.bytes_per_block > 0
    assert dtype.source
    assert TABLE[dtype.name] is dtype
    assert (dtype.exponent_bits is not None) == (dtype.kind == "float")
    assert (dtype.max is not None) == (dtype.kind in ("float", "int", "uint", "bool"))
    if dtype.kind == "float" and dtype.name not in ("tf32", "fp8_e8m0"):
        assert dtype.bits_per_element == 1 + dtype.exponent_bits + dtype.mantissa_bits


@EVERY
def test_every_format_is_one_object(dtype: DType) -> None:
    assert get(dtype.name) is get(dtype.name.upper()) is get(f" {dtype.name} ") is dtype
    assert copy.copy(dtype) is copy.deepcopy(dtype) is pickle.loads(pickle.dumps(dtype)) is dtype


@pytest.mark.parametrize("name", LIMITS)
def test_floats_have_the_limits_that_ml_dtypes_and_numpy_print(name: str) -> None:
    dtype, facts = get(name), LIMITS[name]
    assert dtype.bits_per_element == facts.pop("bits")
    assert {key: getattr(dtype, key) for key in facts} == facts


@pytest.mark.parametrize(("number", "name", "elements", "num_bytes"), GGML)
def test_ggml_types_have_the_sizes_of_their_c_structs(number: int, name: str, elements: int, num_bytes: int) -> None:
    dtype = GGML_TYPES[number]
    assert (dtype.elements_per_block, dtype.bytes_per_block) == (elements, num_bytes)
    assert dtype.bits_per_element == get(name).bits_per_element


def test_every_ggml_type_is_checked() -> None:
    assert set(GGML_TYPES) == {number for number, *_ in GGML}


@pytest.mark.parametrize("a", PROMOTION)
@pytest.mark.parametrize("b", PROMOTION)
def test_promotion_is_pytorchs(a: str, b: str) -> None:
    joined = PROMOTION[a][b]
    if joined is None:
        with pytest.raises(InputError, match="no common type"):
            promote(get(a), get(b))
    else:
        assert promote(get(a), get(b)) is get(joined)


@pytest.mark.parametrize("dtype", [d for d in TABLE.values() if d.elements_per_block > 1], ids=str)
def test_packed_formats_have_no_bytes_per_element(dtype: DType) -> None:
    with pytest.raises(WeighError, match="num_bytes"):
        _ = dtype.itemsize
    with pytest.raises(AttributeError):
        _ = dtype.nothing
    with pytest.raises(InputError):
        promote(dtype, dtypes.FLOAT32)


@given(st.sampled_from([*TABLE.values()]), st.integers(0, 10**15))
def test_bytes_are_those_of_the_blocks_that_hold_the_elements(dtype: DType, elements: int) -> None:
    blocks, rest = divmod(dtype.num_bytes(elements), dtype.bytes_per_block)
    assert rest == 0
    assert 0 <= blocks * dtype.elements_per_block - elements < dtype.elements_per_block


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("torch.bfloat16", "bf16"),
        ("half", "fp16"),
        ("BF16", "bf16"),
        ("F32", "fp32"),
        ("F8_E4M3", "fp8_e4m3"),
        ("float8_e4m3fn", "fp8_e4m3"),
        ("U8", "uint8"),
        ("I64", "int64"),
        ("Q4_K", "q4_k"),
        ("torch.long", "int64"),
    ],
)
def test_other_programs_names_are_understood(name: str, canonical: str) -> None:
    assert get(name).name == canonical


@pytest.mark.parametrize("name", ["", "fp8", "fp4", "float4_e2m1fn_x2", "q4", "float33", "auto"])
def test_other_names_are_refused_and_never_guessed(name: str) -> None:
    with pytest.raises(UnknownNameError):
        get(name)


def test_near_misses_are_suggested() -> None:
    with pytest.raises(UnknownNameError) as caught:
        get("fp8")
    assert {"fp8_e4m3", "fp8_e5m2"} <= {*caught.value.suggestions}


def test_bits_per_weight_are_exact_where_others_round() -> None:
    assert get("iq2_s").bits_per_element == 2.5625
    assert get("nvfp4").bits_per_element == 4.5
    assert get("tq1_0").bits_per_element == 1.6875
