"""The bundled models: published sizes of the families that `weigh` describes, so that a name is enough.

The data is `catalogue.json` beside this file: for every model its names, where its config is published, and the keys of
that config that decide memory. A name that is not here is no guess: it is an error with the nearest names.
"""

from __future__ import annotations

import json
from pkgutil import get_data
from typing import TYPE_CHECKING, Any, NamedTuple

from weigh.errors import InputError, UnknownNameError
from weigh.sources.source import Source

if TYPE_CHECKING:
    from collections.abc import Mapping


class Entry(NamedTuple):
    """One bundled model."""

    name: str
    """The catalogue's name: "llama-3.1-8b"."""
    title: str
    """As its makers write it: "Llama 3.1 8B"."""
    aliases: tuple[str, ...]
    """Other names for the same sizes, as the Hub's."""
    source: str
    """Where the config is published."""
    revision: str
    """A hash of the config (see `Source.revision`)."""
    parameters: int
    """How many parameters it has: what `weigh params` counts."""
    config: Mapping[str, Any]
    """The keys that decide memory."""

    def as_source(self) -> Source:
        """The same as every other source gives."""
        return Source(self.name, self.config, self.source, self.name, bundled_revision=self.revision)


def entries(search: str = "") -> list[Entry]:
    """Every bundled model whose names, title or family have all words of `search` in them, in the catalogue's order.

    >>> [entry.name for entry in entries()][:2]
    ['gpt2', 'gpt2-medium']
    >>> [entry.name for entry in entries("qwen3 moe")]
    ['qwen3-30b-a3b', 'qwen3-235b-a22b']
    """
    found = [Entry(**{**row, "aliases": tuple(row["aliases"])}) for row in _data()["models"]]
    wanted = search.lower().split()
    return [entry for entry in found if all(word in _words(entry) for word in wanted)] if wanted else found


def _words(entry: Entry) -> str:
    return " ".join((entry.name, entry.title, *entry.aliases, entry.config["model_type"])).lower()


def _data() -> dict[str, Any]:
    raw = get_data("weigh.sources", "catalogue.json")
    assert raw is not None, "the loader of this package cannot read data"
    found: dict[str, Any] = json.loads(raw)
    return found


def find(name: str) -> Source:
    """The bundled model of that name or alias; case does not matter.

    >>> find("meta-llama/Llama-2-7b-hf").name
    'llama-2-7b'

    Raises:
        InputError: its makers have not published its shapes.
        UnknownNameError: no bundled model has that name; near misses are suggested.
    """
    wanted = name.strip().lower()
    found = entries()
    for entry in found:
        if wanted == entry.name or any(wanted == alias.lower() for alias in entry.aliases):
            return entry.as_source()
    maker = _closed(wanted)
    if maker is not None:
        raise InputError(
            f"the sizes of {name.strip()} are not published",
            hint=f"{maker} has said neither how many parameters it has nor of what shape.",
        )
    raise UnknownNameError("model", name, [n for e in found for n in (e.name, *e.aliases)])


def _closed(wanted: str) -> str | None:
    """Who makes the model of that name, where its makers keep its sizes to themselves.

    >>> _closed("gpt-4o-mini"), _closed("anthropic/claude-opus-4"), _closed("someone/claude-like-7b")
    ('OpenAI', 'Anthropic', None)
    """
    closed: dict[str, str] = _data()["closed"]
    organization, _, bare = wanted.rpartition("/")
    for prefix, maker in closed.items():
        named = bare == prefix or bare.startswith((f"{prefix}-", f"{prefix} "))
        if named and (not organization or organization == maker.lower().replace(" ", "")):
            return maker
    return None
