"""JSON as it should be: no key twice, no NaN, not nested without end, and every fault one `InputError`."""

from __future__ import annotations

import json
from typing import Any

from weigh.errors import InputError
from weigh.sources.opened import Readable

LARGEST = 8 << 20
"""Bytes; the largest config.json in public use has a tenth of that."""


MOST_BRACKETS = 1 << 20
"""Lists and objects in a file: each takes 60 to 200 bytes of memory for two in the file."""


class Malformed(Exception):
    """JSON by the letter, and yet of no use."""


def parse(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        Malformed: an object has a key twice.
        RecursionError: it is nested too deep.
        ValueError: it is no JSON.
    """
    return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)


def read_object(file: Readable, largest: int = LARGEST) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InputError: it holds none, or is too large.
    """
    if file.size > largest:
        raise InputError(f"is {file.size / 1e6:.0f} MB; such a file has at most {largest >> 20} MiB", where=file.where)
    return parse_object(file.read(0, file.size), file.where)


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object in these bytes.

    >>> parse_object(b'{"a": 1}', "here")
    {'a': 1}

    Raises:
        InputError: they hold none, or one of absurdly many parts.
    """
    check_brackets(data, where)
    try:
        found = parse(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise InputError("is not text in UTF-8", where=where) from None
    except Malformed as error:
        raise InputError(str(error), where=where, hint="Keep one of them.") from None
    except RecursionError:
        raise InputError("is nested too deep", where=where) from None
    except ValueError as error:
        what = "a number has too many digits" if "digits" in str(error) else str(error)
        raise InputError(f"is not JSON: {what}", where=where) from None
    if not isinstance(found, dict):
        raise InputError("is no JSON object", where=where)
    return found


def check_brackets(data: bytes, where: str) -> None:
    """Raise `InputError` for more lists and objects than any file has that is read here."""
    if data.count(b"[") + data.count(b"{") > MOST_BRACKETS:
        raise InputError(f"has more than {MOST_BRACKETS:,} lists and objects", where=where)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise Malformed(f"has {next(k for k in keys if keys.count(k) > 1)!r} twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
