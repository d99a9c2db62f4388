"""What is said of number formats: bits, precision, devices, and what a model weighs in them."""

from __future__ import annotations

from fractions import Fraction
from xml.etree import ElementTree

import pytest

from weigh import api
from weigh.dtypes import TABLE, DType, get
from weigh.report.formats import FormatsReport, bits, digits, multiplied_by, whole_numbers

FLOATS = [d for d in TABLE.values() if d.kind == "float" and d.name not in ("tf32", "fp8_e8m0") and d.name != "fp64"]


@pytest.mark.parametrize("dtype", [d for d in TABLE.values() if bits(d) is not None], ids=str)
def test_a_drawing_has_the_formats_bits(dtype: DType) -> None:
    drawn = bits(dtype)
    assert drawn is not None
    assert len(drawn) == dtype.bits_per_element
    if dtype.kind == "float":
        assert (drawn.count("E"), drawn.count("M")) == (dtype.exponent_bits, dtype.mantissa_bits)


def values(dtype: DType) -> set[Fraction]:
    """Every value from 0 to the largest, from the definition: mantissas times powers of two."""
    assert dtype.mantissa_bits is not None
    step = Fraction(dtype.min_subnormal or 0)
    found = {Fraction(0)}
    scale = Fraction(1)
    while step * scale <= Fraction(dtype.max or 0):
        found |= {m * step * scale for m in range(2 ** (dtype.mantissa_bits + 1))}
        scale *= 2
    return {v for v in found if v <= Fraction(dtype.max or 0)}


@pytest.mark.parametrize("dtype", [d for d in FLOATS if d.bits_per_element <= 16 and d.name != "bf16"], ids=str)
def test_whole_numbers_are_exact_up_to_there_and_not_beyond(dtype: DType) -> None:
    held, last = values(dtype), whole_numbers(dtype)
    assert last is not None
    assert all(Fraction(n) in held for n in range(last + 1))
    assert Fraction(last + 1) not in held


def test_digits_follow_from_epsilon() -> None:
    for dtype in FLOATS:
        found = digits(dtype)
        assert found is not None
        assert dtype.epsilon is not None
        assert 10 ** (-found) == pytest.approx(dtype.epsilon / 2)


def test_devices_are_those_with_a_source() -> None:
    assert multiplied_by(get("fp8_e4m3"))["h100-80gb"] == 1979 * 10**12
    assert "a100-80gb" not in multiplied_by(get("fp8_e4m3"))
    assert multiplied_by(get("q4_k")) == {}


def test_a_model_weighs_what_params_says() -> None:
    model = api.params("llama-2-7b")
    report = FormatsReport.of((), model)
    for name in ("fp32", "bf16", "int8", "q4_k", "nf4"):
        cost = report.cost(get(name))
        assert cost is not None
        assert cost.num_bytes == api.params("llama-2-7b", name).num_bytes
    assert report.cost(get("bool")) is None
    assert report.cost(model.dtype).share == 1  # type: ignore[union-attr]
    assert report.cost(get("bf16")).device == "t4"  # type: ignore[union-attr]


def test_one_format_in_full() -> None:
    text = FormatsReport.of([get("bf16")], api.params("gpt2")).text()
    assert "SEEEEEEEEMMMMMMM   1 sign, 8 exponent, 7 mantissa" in text
    assert "epsilon           0.0078125" in text
    assert "h100-80gb 989" in text
    assert "gpt2: 237.35 MiB, 50.0 % of fp32" in text


def test_the_picture_has_a_square_for_every_bit() -> None:
    chosen = [get(name) for name in ("fp32", "bf16", "int8", "q4_0")]
    root = ElementTree.fromstring(FormatsReport.of(chosen).svg())
    squares = [r for r in root.iter("{http://www.w3.org/2000/svg}rect") if r.attrib.get("height") == "15"]
    assert len(squares) == 32 + 16 + 8
