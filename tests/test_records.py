"""weigh.records beside the standard library's data classes: the same bodies, decorated by both, behave alike."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from types import ModuleType
from typing import Any, ClassVar

import pytest

from weigh import records

OPTIONS = [
    {},
    {"frozen": True},
    {"slots": True},
    {"frozen": True, "slots": True},
    {"frozen": True, "slots": True, "kw_only": True},
    {"frozen": True, "eq": False, "repr": False},
]


def two(module: ModuleType, options: dict[str, bool]) -> tuple[type[Any], type[Any]]:
    """A class with one of each kind of field, and one that inherits from it."""

    @module.dataclass(**options)
    class Base:
        """A class."""

        kind: ClassVar[str] = "none of the fields"
        first: int = 1
        words: list[str] = module.field(default_factory=list)
        late: str = module.field(default="", repr=False, kw_only=True)
        made: int = module.field(init=False, default=0)
        kept: str = module.field(init=False, default="as it is")

        def __post_init__(self) -> None:
            object.__setattr__(self, "made", self.first * 2)

        def double(self) -> int:
            return self.made

    @module.dataclass(**options)
    class Derived(Base):
        """Another."""

        first: int = 3
        second: float | None = None

    for cls in (Base, Derived):
        cls.__qualname__ = cls.__name__
        globals()[cls.__name__] = cls  # where pickle looks
    return Base, Derived


def observed(module: ModuleType, options: dict[str, bool]) -> list[Any]:
    """What users of such classes can see."""
    seen: list[Any] = []
    for cls in two(module, options):
        one, same, other = cls(first=2), cls(first=2), cls(first=2, words=["a"], late="b")
        seen += [
            one == same,
            one == other,
            one != 3,
            hasattr(one, "__dict__"),
            one.double(),
            cls.kind,
            other.late,
            one.kept,
        ]
        seen += [[f.name for f in dataclasses.fields(one)], [str(f.type) for f in dataclasses.fields(cls)]]
        seen += [[(f.default, f.init, f.repr, f.kw_only) for f in dataclasses.fields(cls) if f.name != "words"]]
        seen += [dataclasses.asdict(other), dataclasses.is_dataclass(cls)]
        if options.get("repr", True):
            seen += [repr(one), repr(other)]
        seen += [vars_of(module.replace(other, first=7)), vars_of(dataclasses.replace(other, first=7))]
        seen += [vars_of(copy.copy(other)), vars_of(copy.deepcopy(other)), vars_of(pickle.loads(pickle.dumps(other)))]
        seen += [refusal(lambda o=other: setattr(o, "first", 4)), refusal(lambda o=other: delattr(o, "late"))]
        seen += [refusal(lambda c=cls: c(third=4)), refusal(lambda c=cls: c(1, ["x"], 2.0, "too", "many"))]
        seen += [refusal(lambda o=other: module.replace(o, made=4)) is not None, refusal(lambda o=one: hash(o))]
    return seen


def vars_of(one: Any) -> dict[str, Any]:
    return {f.name: getattr(one, f.name) for f in dataclasses.fields(one)}


def refusal(action: Any) -> str | None:
    try:
        action()
    except (AttributeError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}".replace("two.<locals>.", "")
    return None


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_behaves_as_the_standard_data_class(options: dict[str, bool]) -> None:
    assert observed(records, options) == observed(dataclasses, options)


def test_methods_of_the_class_itself_stay() -> None:
    @records.dataclass(frozen=True)
    class Own:
        size: int = 0

        def __repr__(self) -> str:
            return "own"

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 7

    assert (repr(Own()), Own(1) == Own(2), hash(Own(3))) == ("own", True, 7)


def test_hashes_go_by_the_values() -> None:
    @records.dataclass(frozen=True, slots=True)
    class Point:
        x: int
        y: int = 0

    assert {Point(1), Point(1, 0), Point(2)} == {Point(1), Point(2)}
