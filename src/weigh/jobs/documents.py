"""A file as a mapping: JSON, TOML and YAML by what the text is, scripts and lists of arguments by their options."""

from __future__ import annotations

import os
from typing import Any

from weigh.errors import InputError, WeighError
from weigh.records import dataclass
from weigh.sources.opened import LocalFile
from weigh.sources.strict_json import parse_object

LARGEST = 4 << 20
"""Bytes; such files are written by hand."""


@dataclass(frozen=True, slots=True)
class Document:
    """A file that was read."""

    where: str
    """Its path."""
    keys: dict[str, Any]
    """What it says; of a script or a list of arguments, its options without the dashes, with "_" for "-"."""
    arguments: bool = False
    """It is a script or a list of arguments."""
    conditional: bool = False
    """It is a script that chooses."""

    def beside(self, path: str) -> str:
        """The path of a file that this one names."""
        if os.path.exists(path) or os.path.isabs(path):  # noqa: PTH110, PTH117  pathlib is slow to import
            return path
        return os.path.join(os.path.dirname(self.where), path)  # noqa: PTH118, PTH120

    def has(self, *names: str) -> bool:
        """Whether all of these keys are there; "a.b" is b in the table a."""
        return all(_within(self.keys, name) for name in names)


def _within(keys: Any, name: str) -> bool:
    for part in name.split("."):
        if not isinstance(keys, dict) or part not in keys:
            return False
        keys = keys[part]
    return True


def load(path: str) -> Document:
    """The mapping in a file.

    Raises:
        InputError: there is no such file, it holds no mapping, or reading it takes a package that is not there.
    """
    file = LocalFile(path)
    if file.size > LARGEST:
        raise InputError(f"is {file.size / 1e6:.0f} MB", where=path, hint="A file that describes a job is small.")
    data = file.read(0, file.size)
    extension = path.rpartition(".")[2].lower()
    if extension == "toml":
        return Document(path, _toml(data, path))
    if data.lstrip()[:1] == b"{":
        return Document(path, parse_object(data, path))
    text = _text(data, path)
    if extension in ("sh", "bash", "args", "txt") or text.startswith("#!") or _is_options(text):
        from weigh.jobs.arguments import options

        keys, conditional = options(text, path)
        return Document(path, keys, arguments=True, conditional=conditional)
    return Document(path, _yaml(text, path))


def _is_options(text: str) -> bool:
    """Whether the first word that is no comment is an option, or a launcher's name."""
    words = next((line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")), [])
    return bool(words) and (words[0].startswith("--") or words[0] in ("torchrun", "accelerate", "deepspeed", "python"))


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError("is not text in UTF-8", where=where) from None


def _toml(data: bytes, where: str) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(_text(data, where))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"is no TOML: {error}", where=where) from None


def _yaml(text: str, where: str) -> dict[str, Any]:
    try:
        import yaml
    except ImportError:
        hint = "Install it with: pip install 'weigh[yaml]'."
        raise InputError("is YAML, which takes the package pyyaml to read", where=where, hint=hint) from None

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Plain values alone; no aliases, of which a few lines make gigabytes, and no key twice."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                raise yaml.YAMLError("aliases are not read here")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [self.construct_object(key, deep=True) for key, _ in node.value]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise yaml.YAMLError(f"the key {twice!r} stands there twice")
            return super().construct_mapping(node, deep)

    try:
        found = yaml.load(text, Loader)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        raise InputError(f"is no YAML: {' '.join(str(error).split())}", where=where) from None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise InputError("holds no keys with values", where=where)
    return found


def write(path: str, words: dict[str, Any]) -> str:
    """The words as the text of a file: TOML, or JSON where its name says so.

    Raises:
        WeighError: the name says neither.
    """
    extension = path.rpartition(".")[2].lower()
    if extension == "json":
        import json

        return json.dumps(words, indent=2) + "\n"
    if extension == "toml":
        return _as_toml(words)
    raise WeighError("a recipe is written as TOML or JSON", where=path, hint="Let the name end in .toml or .json.")


def _as_toml(words: dict[str, Any]) -> str:
    import json  # whose strings, numbers and lists of them are TOML's too

    lines = [f"{name} = {json.dumps(value)}" for name, value in words.items() if not isinstance(value, dict)]
    for name, table in words.items():
        if isinstance(table, dict):
            lines += ["", f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join([*lines, ""])
