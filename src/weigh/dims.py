"""Dimensions that may be many numbers at once.

A tensor's sizes are plain `int`s, or `Dim`s: polynomials over integer arrays that the caller brought (batch sizes,
sequence lengths, ...). The ghost library adds, multiplies and compares sizes and never looks inside, so one run weighs
a million settings. Arrays are evaluated only where a question is asked and where a peak is read; until then a size
is a handful of integer coefficients.

No array library is imported here: `maximum` and the like come from the arrays' own `__array_namespace__`.
"""

from __future__ import annotations

from typing import Any

Array = Any
"""An integer array of the array-API standard (numpy 2 and others). `Any`, as the core imports no array library."""

Monomial = tuple[int, ...]


class AmbiguousDimension(Exception):
    """A question about an array dimension has two answers; `condition` is the boolean array that splits the settings."""

    def __init__(self, condition: Array) -> None:
        super().__init__("a question about an array dimension has two answers")
        self.condition = condition


class Axes:
    """The arrays that one sweep's polynomials are over, and those derived from them (quotients, roundings, maxima)."""

    def __init__(self) -> None:
        self.arrays: list[Array] = []
        self._derived: dict[tuple[Any, ...], Dim] = {}
        self._products: dict[Monomial, Array] = {}
        self._answers: dict[tuple[Any, ...], bool] = {}

    def new(self, array: Array) -> Dim:
        """A dimension whose values are those of `array`."""
        self.arrays.append(array)
        return Dim(self, {(len(self.arrays) - 1,): 1})

    def product(self, monomial: Monomial) -> Array:
        found = self._products.get(monomial)
        if found is None:
            found = self.arrays[monomial[0]]
            for index in monomial[1:]:
                found = found * self.arrays[index]
            self._products[monomial] = found
        return found

    def derive(self, name: str, operand: Dim, other: Size, compute: Any) -> Dim:
        key = (name, operand.key(), other.key() if isinstance(other, Dim) else other)
        found = self._derived.get(key)
        if found is None:
            found = self._derived[key] = self.new(compute())
        return found

    def ask(self, name: str, left: Dim, right: Size, compute: Any) -> bool:
        key = (name, left.key(), right.key() if isinstance(right, Dim) else right)
        found = self._answers.get(key)
        if found is None:
            condition = compute()
            if bool(condition.all()):
                found = True
            elif not bool(condition.any()):
                found = False
            else:
                raise AmbiguousDimension(condition)
            self._answers[key] = found
        return found


class Dim:
    """An integer for every setting of a sweep, as a polynomial over the sweep's arrays. Behaves as an `int` does."""

    __slots__ = ("axes", "terms")

    def __init__(self, axes: Axes, terms: dict[Monomial, int]) -> None:
        self.axes = axes
        self.terms = terms

    def key(self) -> frozenset[tuple[Monomial, int]]:
        return frozenset(self.terms.items())

    def evaluate(self) -> Array:
        """The array of values (int64; use `evaluate_float` for products that can pass 2**63)."""
        total: Array = 0
        for monomial, factor in self.terms.items():
            total = total + (factor * self.axes.product(monomial) if monomial else factor)
        return total

    def evaluate_float(self) -> Array:
        """The array of values in double precision."""
        total: Array = 0.0
        for monomial, factor in self.terms.items():
            value: Array = float(factor)
            for index in monomial:
                value = value * self.axes.arrays[index]
            total = total + value
        return total

    def __repr__(self) -> str:
        return "Dim(" + " + ".join(f"{f}*{m}" for m, f in self.terms.items()) + ")"

    # -- arithmetic
    def __add__(self, other: Size) -> Size:
        terms = dict(self.terms)
        for monomial, factor in other.terms.items() if isinstance(other, Dim) else (((), other),):
            total = terms.get(monomial, 0) + factor
            if total:
                terms[monomial] = total
            else:
                terms.pop(monomial, None)
        return self._make(terms)

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return Dim(self.axes, {m: -f for m, f in self.terms.items()})

    def __sub__(self, other: Size) -> Size:
        return self + (-other)

    def __rsub__(self, other: int) -> Size:
        return -self + other

    def __mul__(self, other: Size) -> Size:
        if not isinstance(other, Dim):
            return Dim(self.axes, {m: f * other for m, f in self.terms.items()}) if other else 0
        terms: dict[Monomial, int] = {}
        for m, f in self.terms.items():
            for n, g in other.terms.items():
                monomial = tuple(sorted(m + n))
                terms[monomial] = terms.get(monomial, 0) + f * g
        return self._make({m: f for m, f in terms.items() if f})

    __rmul__ = __mul__

    def __floordiv__(self, other: Size) -> Size:
        if not isinstance(other, Dim):
            if all(f % other == 0 for f in self.terms.values()):
                return Dim(self.axes, {m: f // other for m, f in self.terms.items()})
            return self.axes.derive("//", self, other, lambda: self.evaluate() // other)
        quotient = self._divide(other)
        if quotient is not None:
            return quotient
        return self.axes.derive("//", self, other, lambda: self.evaluate() // other.evaluate())

    def __mod__(self, other: Size) -> Size:
        if not isinstance(other, Dim) and all(f % other == 0 for f in self.terms.values()):
            return 0
        if isinstance(other, Dim) and self._divide(other) is not None:
            return 0
        divisor = other.evaluate() if isinstance(other, Dim) else other
        return self.axes.derive("%", self, other, lambda: self.evaluate() % divisor)

    def _divide(self, other: Dim) -> Size | None:
        """The exact quotient by a single monomial, where every term holds it."""
        if len(other.terms) != 1:
            return None
        ((divisor, by),) = other.terms.items()
        terms: dict[Monomial, int] = {}
        for monomial, factor in self.terms.items():
            rest = list(monomial)
            for index in divisor:
                if index not in rest:
                    return None
                rest.remove(index)
            if factor % by:
                return None
            terms[tuple(rest)] = factor // by
        return self._make(terms)

    def _make(self, terms: dict[Monomial, int]) -> Size:
        if not terms:
            return 0
        if len(terms) == 1 and () in terms:
            return terms[()]
        return Dim(self.axes, terms)

    # -- questions
    def __eq__(self, other: object) -> bool:
        if isinstance(other, Dim):
            if self.terms == other.terms:
                return True
            return self.axes.ask("==", self, other, lambda: self.evaluate() == other.evaluate())
        if isinstance(other, int):
            return self.axes.ask("==", self, other, lambda: self.evaluate() == other)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.key())

    def __lt__(self, other: Size) -> bool:
        return self._ask_less("<", other)

    def __le__(self, other: Size) -> bool:
        return self._ask_less("<=", other)

    def __gt__(self, other: Size) -> bool:
        return not self._ask_less("<=", other)

    def __ge__(self, other: Size) -> bool:
        return not self._ask_less("<", other)

    def _ask_less(self, name: str, other: Size) -> bool:
        def compute() -> Array:
            right = other.evaluate() if isinstance(other, Dim) else other
            return self.evaluate() < right if name == "<" else self.evaluate() <= right

        return self.axes.ask(name, self, other, compute)

    def __bool__(self) -> bool:
        return self != 0


Size = int | Dim
"""One dimension of a tensor, or a number of bytes."""

Shape = tuple[Size, ...]


def product(shape: Shape) -> Size:
    """The number of elements of a tensor of this shape.

    >>> product((2, 3, 4))
    24
    """
    total: Size = 1
    for size in shape:
        total = total * size
    return total


def round_up(size: Size, multiple: int) -> Size:
    """The smallest multiple that is not below `size`. Arithmetic, not a question.

    >>> round_up(200, 32)
    224
    """
    return (size + (multiple - 1)) // multiple * multiple


def minimum(left: Size, right: Size) -> Size:
    """The smaller of two sizes, element by element. Arithmetic, not a question."""
    return _extreme("minimum", left, right)


def maximum(left: Size, right: Size) -> Size:
    """The larger of two sizes, element by element. Arithmetic, not a question."""
    return _extreme("maximum", left, right)


def _extreme(name: str, left: Size, right: Size) -> Size:
    if not isinstance(left, Dim):
        if not isinstance(right, Dim):
            return max(left, right) if name == "maximum" else min(left, right)
        left, right = right, left
    assert isinstance(left, Dim)
    operand, other = left, right

    def compute() -> Array:
        values = operand.evaluate()
        rest = other.evaluate() if isinstance(other, Dim) else other
        function = getattr(values.__array_namespace__(), name)
        return function(values, rest)

    return operand.axes.derive(name, operand, other, compute)


def undominated(sizes: list[Size]) -> list[Size]:
    """Those sizes that can be the largest for some setting: all others have no coefficient above some kept one.

    Sound because every axis is positive: where all coefficients of `a - b` are at least zero, `a` is never the smaller.
    """
    kept: list[dict[Monomial, int]] = []
    result: list[Size] = []
    distinct = {frozenset(_terms(s).items()): s for s in sizes}
    for size in sorted(distinct.values(), key=lambda s: -sum(_terms(s).values())):
        terms = _terms(size)
        if any(
            all(k.get(m, 0) >= f for m, f in terms.items()) and all(f >= 0 or m in terms for m, f in k.items())
            for k in kept
        ):
            continue
        kept.append(terms)
        result.append(size)
    return result


def _terms(size: Size) -> dict[Monomial, int]:
    return size.terms if isinstance(size, Dim) else {(): size}


def largest(sizes: list[Size]) -> Size:
    """The elementwise maximum of many sizes: an `int` if all are, else a `Dim`."""
    best, *others = undominated(sizes)
    for other in others:
        best = maximum(best, other)
    return best
