"""Reading a family's settings out of a config, strictly.

A config is the plain dict of a `config.json`. Every family reads it through `Keys`, so that a missing, misspelt or
impossible value is an error that names the key, and never a silent default where the upstream class has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Self, TypeVar

from weigh.errors import InputError, NotModelledError
from weigh.records import dataclass, fields

Settings = TypeVar("Settings")

Probability = float
"""A field's type: a number from 0 up to (not including) 1, as a dropout probability is."""

Count = int
"""A field's type: a whole number from 0 up."""

Pair = tuple[int, int]
"""A field's type: height and width, which a config may give as one number."""

DERIVED: Any = None
"""A field's default: upstream works the value out from other settings."""

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose frequencies are worked out once, and so weigh the same (modeling_rope_utils.py)."""


_unmodelled: list[NotModelledError] = []


def cannot_run(what: str, where: str) -> None:
    """Note a setting that shapes no tensor, and with which the model runs in a way that is not modelled.

    Such a model is counted, and refused only when it is to run (`weigh.models.build`).
    """
    _unmodelled.append(NotModelledError(what, where=where, hint=COUNTED))


def take_unmodelled() -> tuple[NotModelledError, ...]:
    """What was noted since the last call."""
    found = tuple(_unmodelled)
    _unmodelled.clear()
    return found


def architecture(config: Mapping[str, Any], known: Iterable[str], where: str) -> str:
    """The class of upstream's that a config names in `architectures`; the first of `known` where it names none.

    Raises:
        NotModelledError: a class that is not known.
    """
    classes = tuple(known)
    named = config.get("architectures") or classes[:1]
    if not isinstance(named, list | tuple) or not isinstance(named[0], str):
        raise InputError(f"is {named!r}", where=f"{where}: architectures", hint="Give a list of class names.")
    if named[0] not in classes:
        raise NotModelledError(named[0], where=f"{where}: architectures", hint=f"Known: {', '.join(classes)}.")
    return named[0]


@dataclass(frozen=True)
class FamilyConfig:
    """The settings of a family, read from a `config.json` field by field; the defaults are upstream's."""

    aliases: ClassVar[Mapping[str, str]] = {}
    """Other names of keys (upstream's `attribute_map`)."""

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config") -> Self:
        """From a `config.json`. Raises `InputError` for values that cannot be."""
        keys = Keys(config, where, cls.aliases)
        found = keys.fields(cls)
        cls.settle(keys, found)
        return keys.make(cls, found)

    @classmethod
    def settle(cls, keys: Keys, found: dict[str, Any]) -> None:
        """What upstream works out and forbids, for values `found`."""


_read: set[str] = set()


class Watched(dict[str, Any]):
    """A config that notes which of its keys are asked for, so that the others can be named (`take_read`)."""

    def __getitem__(self, key: str) -> Any:
        _read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """As a dict's."""
        _read.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        _read.add(str(key))
        return super().__contains__(key)


def take_read() -> frozenset[str]:
    """The keys that were asked for since the last call, of whatever config."""
    found = frozenset(_read)
    _read.clear()
    return found


HEADER = "`weigh params` counts a model by the header of its weights alone: give it their folder, file or ORG/NAME."
"""What to do with a model whose tensors are not described."""
COUNTED = "Its parameters and its cache are known all the same: ask `weigh params` or `weigh kv`."
"""What to do with a model whose run is not modelled."""


class Keys:
    """Typed access to a config's keys, with upstream's aliases and defaults."""

    def __init__(
        self, config: Mapping[str, Any], where: str = "config", aliases: Mapping[str, str] | None = None
    ) -> None:
        aliases = aliases or {}
        self.config: Mapping[str, Any] = Watched({aliases.get(key, key): value for key, value in config.items()})
        _read.update(aliases)
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
            raise InputError(f"is {value:.3g}", where=f"{self.where}: {key}", hint="No model has that many.")
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

    def number(self, *names: str) -> float:
        """Any number."""
        value = self._find(names, None)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(
                f"is {value!r}, not a number", where=f"{self.where}: {self._named(names)}", hint="Give a number."
            )
        return float(value)

    def words(self, *names: str) -> tuple[str, ...]:
        """A list of strings."""
        value = self._find(names, None)
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise InputError(
                f"is {value!r}, not a list of names",
                where=f"{self.where}: {self._named(names)}",
                hint="Write a list of strings.",
            )
        return tuple(value)

    def numbers(self, *names: str) -> tuple[int, ...]:
        """A list of whole numbers from 0 up."""
        value = self._find(names, None)
        if not isinstance(value, list | tuple) or not all(type(v) is int and v >= 0 for v in value):
            raise InputError(
                f"is {value!r}, not a list of whole numbers",
                where=f"{self.where}: {self._named(names)}",
                hint="Write a list of numbers from 0 up.",
            )
        return tuple(value)

    def pair(self, name: str) -> tuple[int, int]:
        """Height and width: two positive whole numbers, or one for both."""
        value = self.config[name]
        sides = tuple(value) if isinstance(value, list | tuple) else (value, value)
        if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
            raise InputError(
                f"is {value!r}, no height and width", where=f"{self.where}: {name}", hint="Give one number or two."
            )
        return sides

    def flags(self, *names: str) -> tuple[bool, ...]:
        """A list of ones and zeros."""
        value = self._find(names, None)
        if not isinstance(value, list | tuple) or not all(v in (0, 1) for v in value):
            raise InputError(
                f"is {value!r}, not a list of ones and zeros",
                where=f"{self.where}: {self._named(names)}",
                hint="Write a list of ones and zeros.",
            )
        return tuple(map(bool, value))

    def fields(self, cls: type[Any]) -> dict[str, Any]:
        """A value for every field of a dataclass, read by the field's type; its default where the key is absent.

        None where the config says null, and where the default is `DERIVED`.
        """
        found: dict[str, Any] = {}
        for field in fields(cls):
            if field.name not in self.config:
                found[field.name] = self.assumed[field.name] = field.default
            elif self.config[field.name] is None:
                found[field.name] = None
            else:
                found[field.name] = _READERS[str(field.type).removesuffix(" | None")](self, field.name)
        return found

    def make(self, cls: type[Settings], found: Mapping[str, Any]) -> Settings:
        """The dataclass of what `fields` found. Raises `InputError` for null where there must be a value."""
        for field in fields(cls):  # type: ignore[arg-type]
            if found[field.name] is None and not str(field.type).endswith("| None"):
                raise InputError("is null", where=f"{self.where}: {field.name}", hint="Give a value, or leave it out.")
        return cls(**found)

    def refuse(self, name: str, what: str, unless: object = False) -> None:
        """Raises `NotModelledError` where a setting is given that makes another model, with other tensors."""
        if self.config.get(name) not in (None, unless):
            raise NotModelledError(what, where=f"{self.where}: {name}", hint=HEADER)

    def cannot_run(self, name: str, what: str, unless: object = False) -> None:
        """Notes a setting that makes the model run otherwise, and leaves its tensors as they are."""
        if self.config.get(name) not in (None, unless):
            cannot_run(what, f"{self.where}: {name}")

    def check_layer_types(self, found: Mapping[str, Any]) -> None:
        """A `layer_types` for every layer, of full attention or sliding windows, which then have a size.

        Raises:
            InputError: too few or too many types, or no size for the windows.
            NotModelledError: another type.
        """
        types, count = found["layer_types"], found["num_hidden_layers"]
        where = f"{self.where}: layer_types"
        if len(types) != count:
            raise InputError(f"has {len(types)} entries", where=where, hint=f"Give one for each of the {count} layers.")
        for name in types:
            if name not in ("full_attention", "sliding_attention"):
                raise NotModelledError(f"layers of type {name!r}", where=where, hint=HEADER)
        if "sliding_attention" in types and found["sliding_window"] is None:
            raise InputError("is missing", where=f"{self.where}: sliding_window", hint="Give the window's size.")

    def rope_type(self, layer_type: str | None = None, known: tuple[str, ...] = ROPE_TYPES) -> str:
        """The kind of rotary embedding, of one type of layer where they differ (`rope_parameters`, `rope_scaling`).

        Frequencies that change while the model runs, or that turn a part of the width, are not modelled.
        """
        for name in ("rope_scaling", "rope_parameters"):
            found = self.config.get(name)
            if layer_type is not None and isinstance(found, Mapping) and "full_attention" in found:
                found = found.get(layer_type)
            if isinstance(found, Mapping):
                kind = found.get("rope_type", found.get("type", "default"))
                if kind not in known:
                    cannot_run(f"the rotary embedding {kind!r}", f"{self.where}: {name}")
                elif kind not in ("default", "longrope") and found.get("partial_rotary_factor", 1.0) != 1.0:
                    cannot_run(f"{kind!r} for a part of the width", f"{self.where}: {name}")
                return str(kind)
        return "default"

    def rotary_width(
        self, head_dim: int, *legacy: str, default: float = 1.0, known: tuple[str, ...] = ROPE_TYPES
    ) -> int:
        """How many dimensions of a head are rotated: `rope_parameters` and its older spellings.

        `legacy` are older keys of `partial_rotary_factor`. Frequencies that change while the model runs are not
        modelled.
        """
        found = self.config.get("rope_scaling") or self.config.get("rope_parameters") or {}
        if not isinstance(found, Mapping):
            raise InputError(f"is {found!r}, no object", where=f"{self.where}: rope_parameters", hint="Give an object.")
        kind = found.get("rope_type") or found.get("type") or "default"
        if kind not in known:
            cannot_run(f"the rotary embedding {kind!r}", f"{self.where}: rope_parameters")
        factor = found.get("partial_rotary_factor")
        if factor is None:
            factor = self._find((*legacy, "partial_rotary_factor"), default)
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor <= 1:
            raise InputError(
                f"is {factor!r}, no share of a head",
                where=f"{self.where}: partial_rotary_factor",
                hint="Give more than 0, up to 1.",
            )
        return int(head_dim * factor)

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


_READERS: dict[str, Callable[[Keys, str], Any]] = {
    "Count": lambda keys, name: keys.size(name) if keys.config[name] else 0,
    "Pair": Keys.pair,
    "Probability": lambda keys, name: keys.fraction(name, default=0.0),
    "bool": lambda keys, name: keys.flag(name, default=False),
    "float": Keys.number,
    "int": Keys.size,
    "str": lambda keys, name: keys.word(name, default=""),
    "tuple[bool, ...]": Keys.flags,
    "tuple[int, ...]": Keys.numbers,
    "tuple[str, ...]": Keys.words,
}
"""How a field of each type is read."""
