"""Reading a config: a `config.json`, the folder that holds one, or the dict that a tutorial prints.

Nothing that is read is ever executed. What cannot be read is one `InputError` that says what, where and what to do.
"""

from __future__ import annotations

import json
import os
import stat
from typing import Any

from weigh.errors import InputError
from weigh.sources.literature import translate
from weigh.sources.source import Source

LARGEST = 8 << 20
"""Bytes; the largest config.json in public use has a tenth of that."""


def read_config(path: str | os.PathLike[str]) -> Source:
    """The config in a file, or in a folder's `config.json`; "-" is the standard input.

    Raises:
        InputError: there is no such file, it cannot be read, is too large, or holds no config.
    """
    where = os.fspath(path)
    if where == "-":
        return parse_config(_decoded(_read_stdin(), "standard input"), "standard input")
    if os.path.isdir(where):  # noqa: PTH112  pathlib costs more to import than everything else here
        where = os.path.join(where, "config.json")  # noqa: PTH118
        if not os.path.exists(where):  # noqa: PTH110
            raise InputError("the folder has no config.json", where=os.fspath(path), hint="Name the file itself.")
    name = os.path.basename(os.path.dirname(os.path.abspath(where)))  # noqa: PTH119, PTH120, PTH100
    base = os.path.basename(where)  # noqa: PTH119
    return parse_config(_decoded(_read(where), where), where, name=name if base == "config.json" and name else base)


def parse_config(text: str, where: str = "config", name: str | None = None) -> Source:
    """The config in a text: JSON, or a Python dict as a tutorial prints it (read, never executed).

    >>> parse_config('{"model_type": "gpt2", "n_layer": 2}').config
    {'model_type': 'gpt2', 'n_layer': 2}

    Raises:
        InputError: it is neither, or no dict, or nested absurdly deep.
    """
    config = _parse(text, where)
    if not isinstance(config, dict):
        kind = {list: "a list", str: "a text", int: "a number", float: "a number"}.get(type(config), repr(config))
        raise InputError(f"is {kind}, not a config", where=where, hint="A config is a JSON object: {...}.")
    return Source(name or where, translate(config, where), f"read from {where}", where)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode) and status.st_size > LARGEST:
                raise _too_large(path, f"is {status.st_size / 1e6:.0f} MB")
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror or error}", where=path, hint="Give a config.json or its folder."
        ) from None
    except ValueError as error:  # a null byte in the name
        raise InputError(f"is no file name: {error}", where=repr(path)) from None
    if len(data) > LARGEST:
        raise _too_large(path, "does not end")
    return data


def _read_stdin() -> bytes:
    import sys

    data = sys.stdin.buffer.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise _too_large("standard input", "is too long")
    return data


def _too_large(where: str, what: str) -> InputError:
    return InputError(
        f"{what}; a config has at most {LARGEST >> 20} MiB", where=where, hint="Is this the weights instead?"
    )


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError("is not text", where=where, hint="A config is a JSON file in UTF-8.") from None


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except _Malformed as error:
        raise InputError(str(error), where=where, hint="Keep one of them.") from None
    except RecursionError:
        raise InputError("is nested too deep", where=where, hint="A config is a flat JSON object.") from None
    except ValueError as error:
        from weigh.sources.literature import parse_literal

        found = parse_literal(text)
        if found is not None:
            return found
        if not text.strip():
            raise InputError("is empty", where=where, hint="A config is a JSON object: {...}.") from None
        what = "a number has too many digits" if "digits" in str(error) else str(error)
        raise InputError(f"is not JSON: {what}", where=where, hint="Check that line.") from None


class _Malformed(Exception):
    """JSON by the letter, but no config."""


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Malformed(f"has {next(k for k in keys if keys.count(k) > 1)!r} twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
