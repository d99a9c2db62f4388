"""Options in a shell script or a list of arguments: what a program would be started with, without running anything.

Assignments (`NAME=value`, also with a default, `${NAME:-value}`) are put in where `$NAME` stands; a value that stays
open is an error when it is asked for. What a script does under a condition is taken as done, and said.
"""

from __future__ import annotations

import re
import shlex
from typing import Any

from weigh.errors import InputError

_ASSIGNED = re.compile(r"^\s*(?:export\s+)?([A-Za-z_]\w*)=([^\s(][^\s]*|)\s*(?:#.*)?$", re.MULTILINE)
_NAME = re.compile(r"\$\{?([A-Za-z_]\w*)(?:\[[@*]\])?(?::?-([^}]*))?\}?")
_CHOOSES = re.compile(r"^\s*(if|case|for|while)\b", re.MULTILINE)


def options(text: str, where: str) -> tuple[dict[str, Any], bool]:
    r"""The options by name ("_" for "-"; those without a value are True), and whether the script chooses among some.

    >>> options("SIZE=2\ntrain.py --tensor-model-parallel-size $SIZE --bf16", "here")
    ({'tensor_model_parallel_size': 2, 'bf16': True}, False)

    Raises:
        InputError: it is no shell text, or says an option twice.
    """
    text = text.replace("\\\n", " ")
    assigned = {name: value.strip("\"'") for name, value in _ASSIGNED.findall(text)}
    try:
        words = [inner for word in shlex.split(text, comments=True) for inner in _split(word)]
    except ValueError as error:
        raise InputError(f"is no shell text: {error}", where=where) from None
    found: dict[str, Any] = {}
    for name, values in _given(words):
        value = read_value(_expand(" ".join(values), assigned)) if values else True
        if name in found and found[name] != value:
            raise InputError(f"is given twice, {found[name]} and {value}", where=f"{where}: --{name.replace('_', '-')}")
        found[name] = value
    return found, bool(_CHOOSES.search(text))


def _given(words: list[str]) -> list[tuple[str, list[str]]]:
    """Every option with the words behind it."""
    found: list[tuple[str, list[str]]] = []
    takes = False
    for word in words:
        word = word.strip("()")
        if word.startswith("--") and len(word) > 2:
            name, _, value = word[2:].partition("=")
            found.append((name.replace("-", "_"), [value] if value else []))
            takes = not value
        elif word.endswith(".py") or (word.startswith("-") and not word[1:2].isdecimal()):
            takes = False  # the program that a launcher starts
        elif takes and word:
            found[-1][1].append(word)
    return found


def _split(word: str) -> list[str]:
    """A quoted text that holds options, word by word; `=(` and `)` of arrays stand alone."""
    word = re.sub(r"^\w+\+?=\(", "", word)
    return word.split() if " --" in word or word.startswith("--") else [word]


def _expand(word: str, assigned: dict[str, str]) -> str:
    """The word with what is assigned to the names in it; a name within its own value has its default."""

    def value(match: re.Match[str]) -> str:
        name, default = match[1], match[2]
        if name not in assigned:
            return match[0] if default is None else default
        return _expand(assigned[name], {n: v for n, v in assigned.items() if n != name})

    return _NAME.sub(value, word) if "$" in word else word


def read_value(text: str) -> Any:
    """A word as a number or a truth value where it is one.

    >>> read_value("8"), read_value("1e-4"), read_value("True"), read_value("bf16")
    (8, 0.0001, True, 'bf16')
    """
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
