"""Reading a family's settings out of a config, strictly.

A config is the plain dict of a `config.json`. Every family reads it through `Keys`, so that a missing, misspelt or
impossible value is an error that names the key, and never a silent default where the upstream class has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.errors import InputError


class Keys:
    """Typed access to a config's keys, with upstream's aliases and defaults."""

    def __init__(self, config: Mapping[str, Any], where: str = "config") -> None:
        self.config = config
        self.where = where
        self.assumed: dict[str, Any] = {}
        """The keys that were absent, with the upstream default taken for each."""

    def _find(self, names: tuple[str, ...], default: Any) -> Any:
        for name in names:
            if self.config.get(name) is not None:
                return self.config[name]
        if default is not None:
            self.assumed[names[0]] = default
        return default

    def size(self, *names: str, default: int | None = None) -> int:
        """A positive whole number.

        Raises `InputError` where it is missing (and has no default), no number or below one.
        """
        value = self._find(names, default)
        key = self._named(names)
        if value is None:
            raise InputError(
                "is missing", where=f"{self.where}: {key}", hint=f"Add {names[0]!r}, a positive whole number."
            )
        if isinstance(value, bool) or not isinstance(value, int):
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            else:
                raise InputError(
                    f"is {value!r}, not a whole number", where=f"{self.where}: {key}", hint="Give a number."
                )
        if value < 1:
            raise InputError(f"is {value}", where=f"{self.where}: {key}", hint="It must be at least 1.")
        if value >= 2**40:
            raise InputError(f"is {value}", where=f"{self.where}: {key}", hint="No model has that many.")
        return value

    def optional_size(self, *names: str) -> int | None:
        """A positive whole number, or None where the key is absent or null."""
        return self.size(*names) if any(self.config.get(n) is not None for n in names) else None

    def flag(self, *names: str, default: bool) -> bool:
        """True or false."""
        value = self._find(names, default)
        if not isinstance(value, bool):
            raise InputError(
                f"is {value!r}, not true or false",
                where=f"{self.where}: {self._named(names)}",
                hint="Write true or false.",
            )
        return value

    def fraction(self, *names: str, default: float) -> float:
        """A number from 0 up to (not including) 1, as a dropout probability is."""
        value = self._find(names, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise InputError(
                f"is {value!r}, not a probability below 1",
                where=f"{self.where}: {self._named(names)}",
                hint="Give 0 to 1.",
            )
        return float(value)

    def word(self, *names: str, default: str) -> str:
        """A string."""
        value = self._find(names, default)
        if not isinstance(value, str):
            raise InputError(
                f"is {value!r}, not a name", where=f"{self.where}: {self._named(names)}", hint="Write a string."
            )
        return value

    def divides(self, part: str, count: int, whole: str, size: int) -> int:
        """`size // count`. Raises `InputError` where `count` does not divide it."""
        if size % count:
            raise InputError(
                f"{size} is not a multiple of {part} {count}",
                where=f"{self.where}: {whole}",
                hint=f"Change {whole} or {part}: each of the {count} gets the same share.",
            )
        return size // count

    def _named(self, names: tuple[str, ...]) -> str:
        return next((n for n in names if self.config.get(n) is not None), names[0])
