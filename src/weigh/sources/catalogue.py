"""The bundled models: published sizes of the families that `weigh` describes, so that a name is enough.

The data is `catalogue.json` beside this file: for every model its names, where its config is published, and the keys of
that config that decide memory. A name that is not here is no guess: it is an error with the nearest names.
"""

from __future__ import annotations

import json
from pkgutil import get_data
from typing import TYPE_CHECKING, Any, NamedTuple

from weigh.errors import UnknownNameError
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
    config: Mapping[str, Any]
    """The keys that decide memory."""

    def as_source(self) -> Source:
        """The same as every other source gives."""
        return Source(self.name, self.config, self.source, self.name, bundled_revision=self.revision)


def entries() -> list[Entry]:
    """Every bundled model, in the catalogue's order: GPT, then Llama, each from its first version.

    >>> [entry.name for entry in entries()][:2]
    ['gpt2', 'gpt2-medium']
    """
    raw = get_data("weigh.sources", "catalogue.json")
    assert raw is not None, "the loader of this package cannot read data"
    return [Entry(**{**row, "aliases": tuple(row["aliases"])}) for row in json.loads(raw)["models"]]


def find(name: str) -> Source:
    """The bundled model of that name or alias; case does not matter.

    >>> find("meta-llama/Llama-2-7b-hf").name
    'llama-2-7b'

    Raises:
        UnknownNameError: no bundled model has that name; near misses are suggested.
    """
    wanted = name.strip().lower()
    found = entries()
    for entry in found:
        if wanted == entry.name or any(wanted == alias.lower() for alias in entry.aliases):
            return entry.as_source()
    raise UnknownNameError("model", name, [n for e in found for n in (e.name, *e.aliases)])
