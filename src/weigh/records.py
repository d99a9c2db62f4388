"""The standard library's data classes, at a price that every start can pay: `dataclass`, `field`, `fields`, `replace`.

The standard module takes 10 ms to import (it brings `inspect`) and 0.7 ms for each class, whose methods it compiles at
once: 45 ms of a cold answer of 110. Here `__init__` is compiled when the first instance is made, and the other methods
are shared. Classes made here are data classes to everybody: `dataclasses.fields`, `asdict` and `replace` take them, and
type checkers see the standard decorator. What is not used in this house (`order`, `InitVar`, `compare`) is not here.
"""

from __future__ import annotations

from operator import attrgetter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import MISSING, dataclass, field, fields, replace
    from typing import Any

__all__ = ["MISSING", "dataclass", "field", "fields", "replace"]

_FACTORY: Any = object()
"""The default of a parameter whose field has a factory."""


if not TYPE_CHECKING:
    MISSING = object()

    def dataclass(cls=None, /, *, frozen=False, slots=False, eq=True, repr=True, kw_only=False):
        """As `dataclasses.dataclass`."""

        def made(cls):
            return _made(cls, frozen, slots, eq, repr, kw_only)

        return made if cls is None else made(cls)

    def field(*, default=MISSING, default_factory=MISSING, init=True, repr=True, kw_only=None):
        """As `dataclasses.field`."""
        return _Field(default, default_factory, init, repr, kw_only)

    def fields(record):
        """As `dataclasses.fields`."""
        return record.__record__

    def replace(obj, /, **changes):
        """As `dataclasses.replace`."""
        for one in type(obj).__record__:
            if one.init:
                if one.name not in changes:
                    changes[one.name] = getattr(obj, one.name)
            elif one.name in changes:
                raise ValueError(f"{one.name} is not given, but made")
        return type(obj)(**changes)


class _Field:
    """What is known of one field."""

    __slots__ = ("default", "default_factory", "init", "kw_only", "name", "repr", "type")

    def __init__(self, default: Any, factory: Any, init: bool, repr: bool, kw_only: bool | None) -> None:
        self.name = self.type = ""
        self.default, self.default_factory = default, factory
        self.init, self.repr, self.kw_only = init, repr, kw_only


class _Standard:
    """`__dataclass_fields__` as the standard functions want it, made when one of them looks."""

    def __get__(self, instance: object, owner: type) -> dict[str, Any]:
        import dataclasses

        found = {}
        for one in owner.__record__:  # type: ignore[attr-defined]
            said = {"default": one.default, "default_factory": one.default_factory}
            given: Any = {name: value for name, value in said.items() if value is not MISSING}
            made: Any = dataclasses.field(init=one.init, repr=one.repr, kw_only=bool(one.kw_only), **given)
            made.name, made.type = one.name, one.type
            made._field_type = dataclasses._FIELD  # type: ignore[attr-defined]  # noqa: SLF001 (what `fields` looks for)
            found[one.name] = made
        return found


def _made(cls: Any, frozen: bool, slots: bool, eq: bool, repr: bool, kw_only: bool) -> Any:
    fields = {one.name: one for base in reversed(cls.__mro__[1:]) for one in base.__dict__.get("__record__", ())}
    own = cls.__dict__
    for name, annotation in own.get("__annotations__", {}).items():
        if annotation.startswith(("ClassVar", "typing.ClassVar")):
            continue
        default = own.get(name, MISSING)
        one = default if isinstance(default, _Field) else _Field(default, MISSING, True, True, None)
        one.name, one.type = name, annotation
        one.kw_only = kw_only if one.kw_only is None else one.kw_only
        if isinstance(default, _Field):
            if one.default is MISSING:
                delattr(cls, name)
            else:
                setattr(cls, name, one.default)
        fields[name] = one
    record = tuple(fields.values())
    if slots:
        cls = _slotted(cls, record)
    cls.__record__, cls.__dataclass_fields__ = record, _Standard()
    cls.__values__ = attrgetter(*fields) if fields else tuple
    _give(cls, __init__=_first_init(cls, record, frozen))
    if repr:
        _give(cls, __repr__=_repr)
    if eq:
        hashes = cls.__dict__.get("__hash__") or (_hash if frozen else None)
        _give(cls, __eq__=_eq)
        cls.__hash__ = hashes
    if frozen:
        _give(cls, __setattr__=_refuse, __delattr__=_refuse)
        if slots:
            _give(cls, __getstate__=_getstate, __setstate__=_setstate)
    return cls


def _give(cls: Any, **methods: Any) -> None:
    """What the class does not define itself."""
    for name, method in methods.items():
        if name not in cls.__dict__:
            setattr(cls, name, method)


def _slotted(cls: Any, record: tuple[_Field, ...]) -> Any:
    """The same class with slots for its fields: these must be there when a class is made."""
    taken = {name for base in cls.__mro__[1:] for name in base.__dict__.get("__slots__", ())}
    own = {name: value for name, value in cls.__dict__.items() if name not in ("__dict__", "__weakref__")}
    for one in record:
        own.pop(one.name, None)
    own["__slots__"] = tuple(one.name for one in record if one.name not in taken)
    made = type(cls)(cls.__name__, cls.__bases__, own)
    made.__qualname__ = cls.__qualname__
    return made


def _first_init(cls: Any, record: tuple[_Field, ...], frozen: bool) -> Callable[..., None]:
    """An `__init__` that puts the compiled one in its own place."""

    def first(self: Any, /, *args: Any, **words: Any) -> None:
        cls.__init__ = _init(cls, record, frozen)
        cls.__init__(self, *args, **words)

    return first


def _init(cls: Any, record: tuple[_Field, ...], frozen: bool) -> Any:
    known: dict[str, Any] = {"_set": object.__setattr__, "_FACTORY": _FACTORY}
    given, named, body = ["self"], list[str](), list[str]()
    for one in record:
        name, value = one.name, one.name
        default = ""
        if one.default_factory is not MISSING:
            known[f"_make_{name}"] = one.default_factory
            default, value = "=_FACTORY", f"_make_{name}() if {name} is _FACTORY else {name}"
        elif one.default is not MISSING:
            known[f"_default_{name}"] = one.default
            default = f"=_default_{name}"
        if one.init:
            (named if one.kw_only else given).append(name + default)
        elif default:
            value = f"_make_{name}()" if one.default_factory is not MISSING else f"_default_{name}"
        else:
            continue  # `__post_init__` gives it
        body.append(f"_set(self, {name!r}, {value})" if frozen else f"self.{name} = {value}")
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    words = ", ".join([*given, *(["*", *named] if named else [])])
    exec(f"def __init__({words}):\n " + "\n ".join(body or ["pass"]), known)
    found = known["__init__"]
    found.__qualname__ = f"{cls.__qualname__}.__init__"
    return found


def _repr(self: Any) -> str:
    shown = ", ".join(f"{one.name}={getattr(self, one.name)!r}" for one in self.__record__ if one.repr)
    return f"{type(self).__qualname__}({shown})"


def _eq(self: Any, other: Any) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    return self.__values__(self) == self.__values__(other)


def _hash(self: Any) -> int:
    return hash(self.__values__(self))


def _refuse(_: Any, name: str, *value: Any) -> None:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot {'assign to' if value else 'delete'} field {name!r}")


def _getstate(self: Any) -> list[Any]:
    return [getattr(self, one.name) for one in self.__record__]


def _setstate(self: Any, state: list[Any]) -> None:
    for one, value in zip(self.__record__, state, strict=True):
        object.__setattr__(self, one.name, value)
