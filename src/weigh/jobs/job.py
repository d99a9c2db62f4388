"""What a file says about a training, and the book that a reader keeps of the file's keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from weigh.errors import InputError, NotModelledError, UsageError
from weigh.jobs.documents import Document
from weigh.records import dataclass, field, replace

Taken = tuple[str, str, str]
"""Something taken for granted: what, why, and what it does to the figures."""


@dataclass(frozen=True, slots=True)
class Job:
    """A training, as files describe it."""

    files: tuple[str, ...] = ()
    """Other files that this one names."""
    read_as: dict[str, str] = field(default_factory=dict)
    """The format of every file that was read, by its path."""
    model: Any = None
    """The model, in any of the forms in which one may be named."""
    runtime: str | None = None
    """The program that trains, with its release where one is said."""
    device: str | None = None
    """The device that it should fit."""
    words: dict[str, Any] = field(default_factory=dict)
    """Settings of a `Training` by name, not checked."""
    said_by: dict[str, str] = field(default_factory=dict)
    """Which key of which file each setting comes from, or the program whose default it is."""
    defaults: frozenset[str] = frozenset()
    """Settings that no key says: the program's defaults. What another file says comes before them."""
    among_many: dict[str, Any] = field(default_factory=dict)
    """Further settings where there is more than one device."""
    own_loop: bool = False
    """The program's loop is so much its own that another one's answer would be wrong."""
    used: tuple[str, ...] = ()
    """Keys that were used."""
    harmless: tuple[str, ...] = ()
    """Keys that do not matter to memory."""
    unknown: tuple[str, ...] = ()
    """Keys that nobody here has heard of."""
    assumed: tuple[Taken, ...] = ()
    """What the file leaves open."""

    def beside(self, other: Job) -> Job:
        """This and another file of the same training.

        Raises:
            UsageError: they say different things.
        """
        words, said_by = dict(self.words), dict(self.said_by)
        defaults = set(self.defaults)
        for name, value in other.words.items():
            if name in words and name not in defaults and name not in other.defaults and words[name] != value:
                raise UsageError(
                    f"{said_by[name]} says {words[name]!r}, and {other.said_by[name]} says {value!r}",
                    where=name,
                    hint="Say on the command line which it is, or pass over one of the keys with --ignore.",
                )
            if name not in words or name not in other.defaults:
                words[name], said_by[name] = value, other.said_by[name]
                (defaults.add if name in other.defaults else defaults.discard)(name)
        return replace(
            self,
            read_as=self.read_as | other.read_as,
            model=self.model if self.model is not None else other.model,
            runtime=_first(self, other, "runtime"),
            device=self.device or other.device,
            words=words,
            said_by=said_by,
            defaults=frozenset(defaults),
            among_many=self.among_many | other.among_many,
            own_loop=self.own_loop or other.own_loop,
            used=self.used + other.used,
            harmless=self.harmless + other.harmless,
            unknown=self.unknown + other.unknown,
            assumed=self.assumed + other.assumed,
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON: which keys had which fate."""
        return {
            "files": self.read_as,
            "used": list(self.used),
            "harmless": list(self.harmless),
            "unknown": list(self.unknown),
        }


def _first(a: Job, b: Job, name: str) -> Any:
    """The runtime of the file that has a loop of its own, else of the first that names one."""
    return getattr(b, name) if b.own_loop or getattr(a, name) is None else getattr(a, name)


class Book:
    """The keys of a file while a reader goes through them."""

    def __init__(self, document: Document, form: str, ignored: frozenset[str], harmless: str) -> None:
        self.document = document
        self.form = form
        self.left = dict(_leaves(document.keys))
        self.harmless = tuple(harmless.split())
        self.refused: list[str] = []
        self.words: dict[str, Any] = {}
        self.said_by: dict[str, str] = {}
        self.defaults: set[str] = set()
        self.assumed: list[Taken] = []
        self.used: list[str] = []
        self.ignored = [key for key in self.left if key in ignored or key.partition(".")[0] in ignored]
        for key in self.ignored:
            del self.left[key]
        if self.ignored:
            self.assume(
                f"without {', '.join(self.ignored)} of {document.where}", "you said so", "as if it were not there"
            )

    def take(self, *keys: str) -> Any:
        """The value of the first of these keys that says something; all of them are used."""
        return self.found(*keys)[1]

    def found(self, *keys: str) -> tuple[str, Any]:
        """The same, with the key."""
        result: tuple[str, Any] = (keys[0], None)
        for key in keys:
            if key in self.left:
                value = self.left.pop(key)
                self.used.append(key)
                if result[1] is None and value is not None and value != "":
                    result = (key, value)
        return result

    def table(self, key: str) -> dict[str, Any]:
        """All that stands below a key, by its last names; used."""
        below = [name for name in self.left if name.startswith(f"{key}.")]
        self.used += below
        return {name[len(key) + 1 :]: self.left.pop(name) for name in below}

    def say(self, word: str, value: Any, key: str) -> None:
        """A setting, because of a key."""
        self.words[word] = value
        self.said_by[word] = f"{self.document.where}: {key}"
        self.defaults.discard(word)

    def copy(self, word: str, *keys: str, default: Any = None) -> None:
        """A setting as one of these keys has it; where none is there, the program's default."""
        key, value = self.found(*keys)
        if value is not None:
            self.say(word, value, key)
        elif default is not None:
            self.default(word, default)

    def default(self, word: str, value: Any) -> None:
        """A setting that the program chooses where its file does not say."""
        if word in self.words:
            return
        self.words[word] = value
        self.said_by[word] = f"{self.form}'s default"
        self.defaults.add(word)

    def assume(self, what: str, why: str, effect: str) -> None:
        """Something that the file leaves open."""
        self.assumed.append((what, why, effect))

    def refuse(self, *keys: str) -> None:
        """Keys that change memory, and are not modelled: what they say must be nothing."""
        for key in keys:
            for name in [name for name in self.left if name == key or name.startswith(f"{key}.")]:
                value = self.left.pop(name)
                if value in (None, False, 0, "", "none", "None", "NO", "no", "false", [], {}):
                    self.used.append(name)
                elif name == key:
                    self.refused.append(f"{name}: {value}")
                elif key not in self.refused:
                    self.refused.append(key)

    def refuse_more_than_one(self, *keys: str) -> None:
        """Numbers of devices that share something in a way that is not modelled; one of them shares nothing."""
        for key in keys:
            if self.left.get(key) in (1, "1"):
                del self.left[key]
                self.used.append(key)
        self.refuse(*keys)

    def number(self, *keys: str) -> tuple[str, float | None]:
        """A number, and its key.

        Raises:
            InputError: the value is none.
        """
        key, value = self.found(*keys)
        try:
            return key, None if value is None else float(value)
        except (TypeError, ValueError):
            where = f"{self.document.where}: {key}"
            raise InputError(f"is {value!r}", where=where, hint="It is a number.") from None

    def refusal(self, key: str, value: Any) -> None:
        """A key whose value is not modelled."""
        self.refused.append(f"{key}: {value}")

    def whole(self, *keys: str, default: int | None = None) -> int | None:
        """A whole number, from 1 on.

        Raises:
            InputError: the value is none.
        """
        key, value = self.found(*keys)
        if value is None:
            return default
        number = int(value) if isinstance(value, str) and value.isdecimal() else value
        if type(number) is not int or number < 1:
            raise InputError(f"is {value!r}", where=f"{self.document.where}: {key}", hint="It is a number from 1 on.")
        return number

    def job(self, **more: Any) -> Job:
        """What was found.

        Raises:
            NotModelledError: keys that matter are not modelled.
        """
        if self.refused:
            hint = "Pass over keys with --ignore KEY,KEY to weigh the rest."
            raise NotModelledError("; ".join(self.refused), where=self.document.where, hint=hint)
        harmless = [key for key in self.left if self._is_harmless(key)]
        return Job(
            read_as={self.document.where: self.form},
            words=self.words,
            said_by=self.said_by,
            defaults=frozenset(self.defaults),
            used=tuple(self.used),
            harmless=tuple(harmless),
            unknown=tuple(key for key in self.left if key not in harmless),
            assumed=tuple(self.assumed),
            **more,
        )

    def _is_harmless(self, key: str) -> bool:
        """A key that says nothing, or that is listed; a table of which nothing is used is listed by its own name."""
        nothing = self.left[key] in (None, "", [], {})
        return nothing or any(fnmatchcase(key, p) or fnmatchcase(key.partition(".")[0], p) for p in self.harmless)


def _leaves(keys: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys that have values, "a.b" for b in the table a; an empty table is a value."""
    for key, value in keys.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def flag(value: Any) -> bool:
    """Whether a value switches something on, as YAML, JSON and command lines write it.

    >>> flag("false"), flag("True"), flag(None), flag(1)
    (False, True, False, True)
    """
    return value.strip().lower() in ("true", "yes", "on", "1") if isinstance(value, str) else bool(value)
