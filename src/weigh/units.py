"""Reading and printing amounts: bytes, parameter counts, token counts.

Everything inside `weigh` is a whole number of bytes, parameters or tokens; this module is the only place where units
exist. Reading is strict, because "80G" has two meanings 7 % apart. Printing rounds half up with integer arithmetic, so
that no amount, however large, is shown wrongly. Rates, times and charts are left to the reports.
"""

from __future__ import annotations

from operator import index

from weigh.errors import UsageError

TYPE_CHECKING = False  # type checkers take it for typing's; importing typing would cost more than this module
if TYPE_CHECKING:
    from collections.abc import Mapping

_BINARY = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "PiB": 1 << 50}
_DECIMAL = {"kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15}
_BYTE_UNITS = {"": 1, "B": 1, **_BINARY, **_DECIMAL}
_COUNT_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_TOKEN_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20}
_LONGEST = 40  # characters; no amount needs more


def parse_bytes(amount: str | int, where: str | None = None) -> int:
    """A number of bytes from an int or a text such as "80GB" (10^9 each), "80 GiB" (2^30 each) or "1234" (bytes).

    Units are spelled exactly (kB or KB, MB, GB, TB, PB; KiB, MiB, GiB, TiB, PiB); a fraction of a byte is dropped.
    `where` names the option or key in the error.

    >>> parse_bytes("80GB"), parse_bytes("80GiB"), parse_bytes("1.5 KiB"), parse_bytes(1234)
    (80000000000, 85899345920, 1536, 1234)
    >>> parse_bytes("80G")
    Traceback (most recent call last):
    weigh.errors.UsageError: '80G' has an ambiguous unit. Write 80GB (10^9 bytes each) or 80GiB (2^30 bytes each).

    Raises:
        UsageError: not an amount, negative, or the unit is missing a letter or has the wrong case.
    """
    number, decimals, unit = _split(amount, where)
    if unit not in _BYTE_UNITS:
        raise _bad_byte_unit(str(amount).strip(), unit, where)
    return int(number * _BYTE_UNITS[unit] // 10**decimals)


def parse_count(amount: str | int, where: str | None = None) -> int:
    """A number of parameters: "124439808", "7B" (10^9), "1.5 T" (10^12), "350M", "500K"; the case does not matter.

    >>> parse_count("7B"), parse_count("124.4m"), parse_count(12)
    (7000000000, 124400000, 12)

    Raises:
        UsageError: not an amount, negative, another unit, or not a whole number.
    """
    return _whole(amount, _COUNT_UNITS, "Write a whole number, or a number with K, M, B (10^9) or T (10^12).", where)


def parse_tokens(amount: str | int, where: str | None = None) -> int:
    """A number of tokens or a context length; K is 1024 and M is 1024 * 1024, as in "a context of 128k".

    Model cards name context lengths so: 8k is 8,192 and 128k is 131,072. Counts of training data ("15T tokens") are
    decimal: see `parse_count`.

    >>> parse_tokens("8k"), parse_tokens("128K"), parse_tokens("1M"), parse_tokens("1000")
    (8192, 131072, 1048576, 1000)

    Raises:
        UsageError: not an amount, negative, another unit, or not a whole number.
    """
    return _whole(amount, _TOKEN_UNITS, "Write a whole number, or a number with k (1024) or M (1024 * 1024).", where)


def format_bytes(num_bytes: int, unit: str | None = None) -> str:
    """Bytes for people: exact below 1 KiB, else two decimals in the largest binary unit, or in `unit` if given.

    >>> format_bytes(14257881088), format_bytes(1023), format_bytes(-2048)
    ('13.28 GiB', '1023 B', '-2.00 KiB')
    >>> format_bytes(2**30 - 1), format_bytes(80 * 10**9, "GB"), format_bytes(2**30, "MiB")
    ('1.00 GiB', '80.00 GB', '1024.00 MiB')

    Raises:
        UsageError: `unit` is not a unit of bytes.
    """
    num_bytes = index(num_bytes)
    if unit is None:
        if abs(num_bytes) < 1024:
            return f"{num_bytes} B"
        fitting = [u for u, size in _BINARY.items() if size <= abs(num_bytes)]
        unit = fitting[-1]
        if _scaled(num_bytes, _BINARY[unit], 2) >= 1024_00 and unit != "PiB":  # rounds to one of the next unit
            unit = [*_BINARY][len(fitting)]
    elif unit not in _BYTE_UNITS or not unit:
        raise _bad_byte_unit(f"1{unit}", unit, None)
    size = _BYTE_UNITS[unit]
    return f"{_decimal(num_bytes, size, 0 if size == 1 else 2)} {unit}"


def format_count(count: int) -> str:
    """A count for people: exact below 1000, else four significant digits with K, M, B (10^9) or T (10^12).

    >>> format_count(999), format_count(124439808), format_count(8030261248), format_count(10**9 - 1)
    ('999', '124.4 M', '8.030 B', '1.000 B')
    """
    count = index(count)
    if abs(count) < 1000:
        return str(count)
    fitting = [u for u, size in _COUNT_UNITS.items() if size <= abs(count)]
    unit = fitting[-1]
    if _scaled(count, _COUNT_UNITS[unit], 1) >= 1000_0 and unit != "T":  # rounds to one of the next unit
        unit = [*_COUNT_UNITS][len(fitting)]
    size = _COUNT_UNITS[unit]
    places = next((p for p in (3, 2, 1) if _scaled(count, size, p) < 10**4), 0)
    return f"{_decimal(count, size, places)} {unit}"


def _scaled(amount: int, size: int, places: int) -> int:
    """How many units of the last of `places` decimal places `abs(amount) / size` has, halves rounded up, exactly."""
    shift: int = 10**places
    return (abs(amount) * shift * 2 + size) // (size * 2)


def _decimal(amount: int, size: int, places: int) -> str:
    """`amount / size` written with `places` decimal places."""
    scaled = _scaled(amount, size, places)
    sign = "-" if amount < 0 and scaled else ""
    whole, fraction = divmod(scaled, 10**places)
    return f"{sign}{whole}.{fraction:0{places}d}" if places else f"{sign}{whole}"


def _split(amount: str | int, where: str | None) -> tuple[int, int, str]:
    """The digits as one whole number, how many of them stand behind the point, and the unit."""
    if isinstance(amount, int) and not isinstance(amount, bool):
        amount = str(amount) if abs(amount) < 10**_LONGEST else "too large"
    if not isinstance(amount, str):
        raise UsageError(f"{amount!r} is not an amount", where=where, hint="Write a number or a text such as '80GB'.")
    text = amount.strip()
    before = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    number = before.rstrip()
    whole, point, fraction = number.partition(".")
    digits = whole + fraction
    if len(text) > _LONGEST or not (digits.isascii() and digits.isdigit()) or not whole or (point and not fraction):
        shown = text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
        raise UsageError(f"{shown!r} is not an amount", where=where, hint="Write a number and its unit, if it has one.")
    return int(digits), len(fraction), text[len(before) :]


def _whole(amount: str | int, units: Mapping[str, int], hint: str, where: str | None) -> int:
    number, decimals, unit = _split(amount, where)
    if unit.upper() not in units:
        raise UsageError(f"{str(amount).strip()!r} has an unknown unit", where=where, hint=hint)
    value, rest = divmod(number * units[unit.upper()], int(10**decimals))
    if rest:
        raise UsageError(f"{str(amount).strip()!r} is not a whole number", where=where, hint=hint)
    return value


def _bad_byte_unit(text: str, unit: str, where: str | None) -> UsageError:
    letter = unit[:1].upper()
    if letter in ("K", "M", "G", "T", "P") and unit[1:].lower() in ("", "b", "i", "ib"):
        number = text[: len(text) - len(unit)].rstrip()
        decimal, binary = f"{letter}B", f"{letter}iB"
        power10, power2 = len(str(_DECIMAL[decimal])) - 1, _BINARY[binary].bit_length() - 1
        hint = f"Write {number}{decimal} (10^{power10} bytes each) or {number}{binary} (2^{power2} bytes each)."
        return UsageError(f"{text!r} has an ambiguous unit", where=where, hint=hint)
    units = ", ".join(u for u in _BYTE_UNITS if u)
    return UsageError(f"{text!r} has an unknown unit", where=where, hint=f"Units of bytes: {units}.")
