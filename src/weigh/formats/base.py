"""What the methods share: weights, what they are stored as, and which of them are left alone."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Self

from weigh.dims import product
from weigh.dtypes import DType
from weigh.errors import InputError, NotModelledError
from weigh.records import dataclass, replace

if TYPE_CHECKING:
    from collections.abc import Iterable

    from weigh.sources.checkpoint import StoredTensor

LINEAR, EMBEDDING, HEAD, EXPERTS = "linear", "embedding", "head", "experts"


@dataclass(frozen=True, slots=True)
class Weight:
    """A matrix of the model, or the fused matrices of its experts."""

    name: str
    """Its name in the model: "model.layers.0.mlp.up_proj.weight"."""
    rows: int
    """Features that go out."""
    columns: int
    """Features that go in."""
    dtype: DType
    """Of the model."""
    kind: str
    """One of the words above."""
    experts: int = 1
    """How many experts' matrices a fused tensor holds."""
    joined: int = 1
    """How many matrices of each expert lie in one behind the other: gate and up are 2."""

    @property
    def module(self) -> str:
        """The name of the module that it belongs to."""
        return self.name.removesuffix(".weight")

    @property
    def elements(self) -> int:
        """Of one expert's."""
        return self.rows * self.columns


@dataclass(frozen=True, slots=True)
class Stored:
    """Tensors of a checkpoint that are alike."""

    name: str
    """Of the first of them."""
    shape: tuple[int, ...]
    """Of each, as stored: packed elements are fewer."""
    dtype: DType
    """As stored."""
    parameters: int
    """How many of the model's parameters each stands for; 0 for scales and the like."""
    count: int = 1
    """How many."""

    @property
    def elements(self) -> int:
        """Of each, as stored."""
        found = product(self.shape)
        assert isinstance(found, int)
        return found

    @property
    def num_bytes(self) -> int:
        """Of each."""
        return self.dtype.num_bytes(self.elements)


class Format(ABC):
    """A method of storing quantized weights, with its settings."""

    method: ClassVar[str]
    """Its `quant_method`."""

    @classmethod
    @abstractmethod
    def read(cls, found: Mapping[str, Any], config: Mapping[str, Any], where: str) -> Self:
        """From a `quantization_config` and the config around it.

        Raises:
            InputError: a key is missing or impossible.
            NotModelledError: a setting is not described.
        """

    @property
    def by_name(self) -> bool:
        """Whether modules of some names are stored otherwise, so that blocks of one kind can differ."""
        return True

    @abstractmethod
    def converts(self, weight: Weight) -> bool:
        """Whether it is stored quantized."""

    @abstractmethod
    def store(self, weight: Weight) -> tuple[Stored, ...]:
        """What one matrix is stored as."""

    @abstractmethod
    def parameters_in(self, tensor: StoredTensor) -> int | None:
        """How many parameters a tensor of a checkpoint stands for; None where it is none of the method's own."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What it is, in a few words: "nf4 in blocks of 64"."""

    def store_all(self, weight: Weight) -> tuple[Stored, ...]:
        """What a weight is stored as: every matrix of every expert on its own, as most checkpoints have them."""
        if weight.kind != EXPERTS:
            return self.store(weight)
        count = weight.experts * weight.joined
        return tuple(replace(s, count=count) for s in self.store(replace(weight, rows=weight.rows // weight.joined)))


def beside(weight: Weight, suffix: str, shape: tuple[int, ...], dtype: DType, parameters: int = 0) -> Stored:
    """A stored tensor of a weight's module: `up_proj.weight` has `up_proj.scales` beside it."""
    return Stored(f"{weight.module}.{suffix}", shape, dtype, parameters)


def ceil(a: int, b: int) -> int:
    """The quotient, rounded up."""
    return -(-a // b)


def left_alone(name: str, patterns: Iterable[str]) -> bool:
    """Whether transformers leaves a module alone (`should_convert_module`): by its beginning, as a regex, or its end.

    >>> left_alone("model.layers.1.mlp.gate", ["layers.1", "mlp.gate"]), left_alone("model.layers.0.mlp.up", ["mlp"])
    (True, False)
    """
    return any(_beginning(pattern).match(name) or name.endswith(pattern) for pattern in patterns)


@cache
def _beginning(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(rf"(?:{pattern})(?:(?<=\.)|(?=\.|$))")
    except re.error as error:
        raise InputError(
            f"{pattern!r} is no pattern ({error})", where="quantization_config", hint="Give module names."
        ) from None


def in_block(name: str) -> bool:
    """Whether a module lies in one of the model's blocks."""
    return any(part.isdecimal() for part in name.split("."))


def number(found: Mapping[str, Any], where: str, *names: str, default: int | None = None) -> int:
    """A whole number under one of its names.

    Raises:
        InputError: it is missing, or none.
    """
    value = next((found[n] for n in names if found.get(n) is not None), default)
    if value is None:
        raise InputError("is missing", where=f"{where}: {names[0]}", hint="Give a whole number.")
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"is {value!r}, not a whole number", where=f"{where}: {names[0]}", hint="Give a whole number.")
    return value


def bits_of(
    found: Mapping[str, Any], where: str, known: tuple[int, ...], *names: str, default: int | None = None
) -> int:
    """Bits of a code.

    Raises:
        InputError: they are missing, or no number.
        NotModelledError: a width that the method does not have.
    """
    bits = number(found, where, *(names or ("bits",)), default=default)
    if bits not in known:
        raise NotModelledError(f"{bits} bits", where=where)
    return bits


def words(found: Mapping[str, Any], where: str, *names: str) -> tuple[str, ...] | None:
    """A list of names under one of its names; None where it is absent or null.

    Raises:
        InputError: it is no list of names.
    """
    for name in names:
        value = found.get(name)
        if value is None:
            continue
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise InputError("is no list of names", where=f"{where}: {name}", hint="Write a list of strings.")
        return tuple(value)
    return None
