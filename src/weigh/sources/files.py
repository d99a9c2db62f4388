"""Reading a config: a `config.json`, a `params.json`, Megatron's arguments, or the dict that a tutorial prints.

Nothing that is read is ever executed. What cannot be read is one `InputError` that says what, where and what to do.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from weigh.errors import InputError
from weigh.sources import literature, megatron, params_json
from weigh.sources.source import Source
from weigh.sources.strict_json import LARGEST, Malformed, parse

if TYPE_CHECKING:
    from weigh.sources.opened import Readable


def read_config(path: str | os.PathLike[str]) -> Source:
    """The config in a file; "-" is the standard input.

    Raises:
        InputError: there is no such file, it cannot be read, is too large, or holds no config.
    """
    where = os.fspath(path)
    if where == "-":
        return parse_config(_decoded(_read_stdin(), "standard input"), "standard input")
    name = os.path.basename(os.path.dirname(os.path.abspath(where)))  # noqa: PTH119, PTH120, PTH100
    base = os.path.basename(where)  # noqa: PTH119
    return parse_config(_decoded(_read(where), where), where, name=name if base == "config.json" and name else base)


def read_opened(file: Readable, name: str) -> Source:
    """The config in a file of a model's folder.

    Raises:
        InputError: it is too large, or holds no config.
    """
    if file.size > LARGEST:
        raise _too_large(file.where, f"is {file.size / 1e6:.0f} MB")
    return parse_config(_decoded(file.read(0, file.size), file.where), file.where, name)


def parse_config(text: str, where: str = "config", name: str | None = None) -> Source:
    """The config in a text: JSON, a Python dict as a tutorial prints it (read, never executed), Megatron's arguments.

    >>> parse_config('{"model_type": "gpt2", "n_layer": 2}').config
    {'model_type': 'gpt2', 'n_layer': 2}

    Raises:
        InputError: it is none of these, or nested absurdly deep.
    """
    config = _parse(text, where)
    if not isinstance(config, dict):
        kind = {list: "a list", str: "a text", int: "a number", float: "a number"}.get(type(config), repr(config))
        raise InputError(f"is {kind}, not a config", where=where, hint="A config is a JSON object: {...}.")
    return Source(name or where, translate(config, where), f"read from {where}", where)


def translate(config: dict[str, Any], where: str = "config") -> dict[str, Any]:
    """A config in whatever words, in those of a `config.json`.

    Raises:
        InputError: a size is missing that such words must give.
        NotModelledError: it has a word whose meaning is not known.
    """
    if params_json.is_params(config):
        return params_json.translate(config, where)
    if megatron.is_megatron(config):
        return megatron.translate(config, where)
    return literature.translate(config, where)


def _read(path: str) -> bytes:
    import stat

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
        return parse(text)
    except Malformed as error:
        raise InputError(str(error), where=where, hint="Keep one of them.") from None
    except RecursionError:
        raise InputError("is nested too deep", where=where, hint="A config is a flat JSON object.") from None
    except ValueError as error:
        found = literature.parse_literal(text)
        if found is None:
            found = megatron.parse_arguments(text)
        if found is not None:
            return found
        if not text.strip():
            raise InputError("is empty", where=where, hint="A config is a JSON object: {...}.") from None
        what = "a number has too many digits" if "digits" in str(error) else str(error)
        raise InputError(f"is not JSON: {what}", where=where, hint="Check that line.") from None
