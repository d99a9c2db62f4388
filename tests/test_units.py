from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weigh.errors import UsageError
from weigh.units import format_bytes, format_count, parse_bytes, parse_count, parse_tokens

BYTE_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50}
COUNT_UNITS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("0", 0),
        ("1234", 1234),
        (1234, 1234),
        ("12 B", 12),
        ("1kB", 1000),
        ("1KB", 1000),
        ("80GB", 80 * 10**9),
        ("80GiB", 80 * 2**30),
        (" 512 MiB ", 512 * 2**20),
        ("0.1 GB", 10**8),
        ("13.28 GiB", 14259291422),  # 13.28 * 2^30 = 14259291422.72
        ("2PB", 2 * 10**15),
    ],
)
def test_bytes_are_read_exactly(text: str | int, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize(
    "text", ["80G", "80gb", "80Gb", "80gib", "80GIB", "80g", "80Gi", "1k", "80 m"]
)  # bits, a missing letter, the wrong case
def test_ambiguous_units_are_refused_with_both_spellings(text: str) -> None:
    with pytest.raises(UsageError, match="ambiguous") as caught:
        parse_bytes(text, "--memory")
    assert str(caught.value).startswith("--memory: ")
    assert "iB (2^" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "GB",
            "-1",
            "-1GB",
            "+1",
            "1.",
            ".5",
            "1..5",
            "1.5.2",
            "1e9",
            "1,000",
            "1_000",
            "٣",
            "²",
            "nan",
            "1 X",
        ),
        *("9" * 5000, "1" + "B" * 5000, -1, True, 1.5, None, 10**4000),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_not_an_amount_is_refused(text: object) -> None:
    for parse in (parse_bytes, parse_count, parse_tokens):
        with pytest.raises(UsageError):
            parse(text)  # type: ignore[arg-type]


@given(st.text(max_size=60))
def test_any_text_is_an_amount_or_a_usage_error(text: str) -> None:
    for parse in (parse_bytes, parse_count, parse_tokens):
        try:
            amount = parse(text)
        except UsageError as error:
            amount, text = 0, str(error)
        assert amount >= 0
        assert len(text) < 300


def test_tokens_are_binary_and_parameters_decimal() -> None:
    assert parse_tokens("32k") == 32768
    assert parse_tokens("1.5K") == 1536
    assert parse_count("32k") == 32000
    with pytest.raises(UsageError, match="unknown unit"):
        parse_tokens("1B")
    with pytest.raises(UsageError, match="not a whole number"):
        parse_count("1.23456K")


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1019 * 2**20, "1019.00 MiB"),
        (2**30 - 5242, "1.00 GiB"),
        (2**30 - 5243, "1023.99 MiB"),
        (85520809984, "79.65 GiB"),
        (3 * 2**60, "3072.00 PiB"),
        (-1536, "-1.50 KiB"),
        (-5, "-5 B"),
    ],
)
def test_bytes_are_printed_to_the_hundredth(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("num_bytes", "unit", "text"),
    [(2**30, "MiB", "1024.00 MiB"), (10**9, "GB", "1.00 GB"), (12, "B", "12 B"), (-1, "GiB", "0.00 GiB")],
)
def test_a_unit_can_be_chosen(num_bytes: int, unit: str, text: str) -> None:
    assert format_bytes(num_bytes, unit) == text


@pytest.mark.parametrize("unit", ["G", "gb", "x", ""])
def test_a_wrong_unit_is_refused(unit: str) -> None:
    with pytest.raises(UsageError):
        format_bytes(1, unit)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.000 K"),
        (999_949, "999.9 K"),
        (999_950, "1.000 M"),
        (9_999_600, "10.00 M"),
        (99_995_000, "100.0 M"),
        (-70_553_706_496, "-70.55 B"),
        (1_500_000_000_000, "1.500 T"),
        (12_345 * 10**12, "12345 T"),
    ],
)
def test_counts_are_printed_with_four_digits(count: int, text: str) -> None:
    assert format_count(count) == text


def test_floats_are_not_amounts() -> None:
    with pytest.raises(TypeError):
        format_bytes(1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        format_count(1.5)  # type: ignore[arg-type]


@given(st.integers(min_value=1024, max_value=2**59))
def test_printed_bytes_are_within_half_a_hundredth(num_bytes: int) -> None:
    number, unit = format_bytes(num_bytes).split()
    assert abs(Fraction(number) * BYTE_UNITS[unit] - num_bytes) <= Fraction(BYTE_UNITS[unit], 200)
    assert Fraction(number) < 1024 or unit == "PiB"
    assert parse_bytes(f"{number}{unit}") == int(Fraction(number) * BYTE_UNITS[unit])


@given(st.integers(min_value=1000, max_value=10**15 - 10**12))
def test_printed_counts_are_within_half_the_last_of_four_digits(count: int) -> None:
    number, unit = format_count(count).split()
    places = len(number.partition(".")[2])
    assert sum(c.isdigit() for c in number) == 4
    assert abs(Fraction(number) * COUNT_UNITS[unit] - count) <= Fraction(COUNT_UNITS[unit], 2 * 10**places)


@given(st.integers(min_value=0, max_value=10**30))
def test_whole_numbers_survive(number: int) -> None:
    assert parse_bytes(number) == parse_bytes(str(number)) == parse_count(number) == parse_tokens(number) == number
