"""Dimensions that may be many numbers at once.

A tensor's sizes are plain `int`s, or `Dim`s: polynomials over integer arrays that the caller brought (batch sizes,
sequence lengths, ...). The ghost library adds, multiplies and compares sizes and never looks inside, so one run weighs
a million settings. Arrays are evaluated only where a peak is read, or where a question cannot be answered from the
smallest and largest of their values; until then a size is a handful of integer coefficients.

No array library is imported here: `maximum` and the like come from the arrays' own `__array_namespace__`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product as combinations
from typing import Any

from weigh.records import dataclass

Array = Any
"""An integer array of the array-API standard (numpy 2 and others). `Any`, as the core imports no array library."""

Monomial = tuple[int, ...]
"""The product of these axes, in order; an axis that stands twice is squared."""

LIMIT = 2**63
"""Sizes from here on do not fit the arrays' 64-bit integers."""


class AmbiguousDimension(Exception):
    """A question about an array dimension has two answers; the boolean array `condition` splits the settings."""

    def __init__(self, condition: Array) -> None:
        super().__init__("a question about an array dimension has two answers")
        self.condition = condition


@dataclass(frozen=True, slots=True)
class Axis:
    """One of the arrays that polynomials are over: brought by the caller, or derived from two sizes."""

    array: Array
    """The caller's array, or None where the axis is derived."""
    operation: str
    """ "//", "%", "minimum" or "maximum" of `left` and `right`; empty for the caller's."""
    left: Size
    right: Size
    low: int
    """A bound: no value is below it."""
    high: int
    """A bound: no value is above it."""


class Axes:
    """The arrays that one sweep's polynomials are over, and those derived from them (quotients, roundings, maxima)."""

    def __init__(self) -> None:
        self.axes: list[Axis] = []
        self._derived: dict[tuple[Any, ...], Dim] = {}
        self._answers: dict[tuple[Any, ...], bool] = {}

    def new(self, array: Array) -> Dim:
        """A dimension whose values are those of `array`, all of them at least 1.

        Raises `ValueError` for other values, and where the array is empty or of another shape than those before.
        """
        others = (a.array for a in self.axes if a.array is not None)
        if array.ndim != 1 or not array.shape[0] or any(a.shape != array.shape for a in others):
            raise ValueError("the arrays of a sweep have one dimension, and are of one length")
        namespace = array.__array_namespace__()
        low, high = int(namespace.min(array)), int(namespace.max(array))
        if low < 1:
            raise ValueError(f"a dimension of {low} in a sweep: they start at 1")
        self.axes.append(Axis(namespace.astype(array, namespace.int64), "", 0, 0, low, high))
        return Dim(self, {(len(self.axes) - 1,): 1})

    def __len__(self) -> int:
        return int(self.axes[0].array.shape[0])

    def derive(self, operation: str, left: Size, right: Size) -> Size:
        """The size that an operation makes of two others: an axis of its own, unless it is one number everywhere."""
        key = (operation, _key(left), _key(right))
        found = self._derived.get(key)
        if found is None:
            low, high = _OPERATIONS[operation].bounds(*bounds(left), *_divisor_bounds(operation, right))
            if low == high:
                return low
            self.axes.append(Axis(None, operation, left, right, low, high))
            found = self._derived[key] = Dim(self, {(len(self.axes) - 1,): 1})
        return found

    def ask(self, question: str, difference: Dim) -> bool:
        """Whether a difference is "== 0", "< 0" or "<= 0", where all settings agree.

        Raises `AmbiguousDimension` where they do not.
        """
        low, high = bounds(difference)
        if question == "==":
            if low > 0 or high < 0:
                return False
        elif question == "<":
            if high < 0 or low >= 0:
                return high < 0
        elif high <= 0 or low > 0:
            return high <= 0
        key = (question, difference.key())
        found = self._answers.get(key)
        if found is None:
            values = difference.evaluate()
            condition = values == 0 if question == "==" else values < 0 if question == "<" else values <= 0
            namespace = condition.__array_namespace__()
            found = bool(namespace.all(condition))
            if not found and bool(namespace.any(condition)):
                raise AmbiguousDimension(condition)
            self._answers[key] = found
        return found

    def evaluate(self, sizes: list[Size], start: int = 0, stop: int | None = None) -> list[Array]:
        """The values of many sizes for the settings from `start` to `stop`; each axis and product is made once.

        Raises `OverflowError` where a value could pass 2**63 - 1: use `Dim.evaluate_float`.
        """
        return _Evaluation(self, start, len(self) if stop is None else stop).values(sizes)


class _Evaluation:
    """The values of some of a sweep's settings, each axis and each product of axes once."""

    def __init__(self, axes: Axes, start: int, stop: int) -> None:
        self.axes = axes
        self.start = start
        self.stop = stop
        self.products: dict[Monomial, Array] = {}

    def values(self, sizes: list[Size]) -> list[Array]:
        return [self.value(size) for size in sizes]

    def value(self, size: Size) -> Array:
        if not isinstance(size, Dim):
            return size
        if size.magnitude() >= LIMIT:
            raise OverflowError("a size of this sweep can pass 2**63 bytes: use smaller settings, or evaluate_float")
        total: Array = 0
        for monomial, factor in size.terms.items():
            if monomial:
                value = self.product(monomial)
                total = total + (value if factor == 1 else factor * value)
            else:
                total = total + factor
        return total

    def product(self, monomial: Monomial) -> Array:
        found = self.products.get(monomial)
        if found is None:
            if len(monomial) == 1:
                found = self.axis(self.axes.axes[monomial[0]])
            else:
                found = self.product(monomial[:-1]) * self.product(monomial[-1:])
            self.products[monomial] = found
        return found

    def axis(self, axis: Axis) -> Array:
        if axis.array is not None:
            return axis.array[self.start : self.stop]
        left, right = self.value(axis.left), self.value(axis.right)
        return _OPERATIONS[axis.operation].compute(left, right)


class Dim:
    """An integer for every setting of a sweep, as a polynomial over the sweep's arrays. Behaves as an `int` does."""

    __slots__ = ("_bounds", "axes", "terms")

    def __init__(self, axes: Axes, terms: dict[Monomial, int]) -> None:
        self.axes = axes
        self.terms = terms
        self._bounds: tuple[int, int] | None = None

    def key(self) -> frozenset[tuple[Monomial, int]]:
        """What tells two sizes of one sweep apart."""
        return frozenset(self.terms.items())

    def evaluate(self) -> Array:
        """The array of values. Raises `OverflowError` where they could pass 2**63 - 1."""
        return self.axes.evaluate([self])[0]

    def evaluate_float(self, start: int = 0, stop: int | None = None) -> Array:
        """The array of values in double precision, for the settings from `start` to `stop`."""
        evaluation = _Evaluation(self.axes, start, len(self.axes) if stop is None else stop)
        total: Array = 0.0
        for monomial, factor in self.terms.items():
            value: Array = float(factor)
            for index in monomial:
                value = value * evaluation.product((index,))
            total = total + value
        return total

    def bounds(self) -> tuple[int, int]:
        """Two numbers that every value is between; each term's own are reached, those of a sum need not be."""
        if self._bounds is None:
            low = high = 0
            for monomial, factor in self.terms.items():
                least, most = self._product_bounds(monomial)
                low += factor * (least if factor > 0 else most)
                high += factor * (most if factor > 0 else least)
            self._bounds = low, high
        return self._bounds

    def magnitude(self) -> int:
        """What no sum of some of the terms passes, in either direction."""
        return sum(
            abs(factor) * max(map(abs, self._product_bounds(monomial))) for monomial, factor in self.terms.items()
        )

    def _product_bounds(self, monomial: Monomial) -> tuple[int, int]:
        least = most = 1
        for index in monomial:
            axis = self.axes.axes[index]
            if least < 0 or axis.low < 0:
                ends = [a * b for a, b in combinations((least, most), (axis.low, axis.high))]
                least, most = min(ends), max(ends)
            else:
                least, most = least * axis.low, most * axis.high
        return least, most

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
        if isinstance(other, Dim):
            quotient = self._divide(other)
            return self.axes.derive("//", self, other) if quotient is None else quotient
        whole, rest = self._split(other)
        return whole + (rest // other if isinstance(rest, int) else self.axes.derive("//", rest, other))

    def __rfloordiv__(self, other: int) -> Size:
        return self.axes.derive("//", other, self)

    def __mod__(self, other: Size) -> Size:
        if isinstance(other, Dim):
            return self.axes.derive("%", self, other) if self._divide(other) is None else 0
        _, rest = self._split(other)
        return rest % other if isinstance(rest, int) else self.axes.derive("%", rest, other)

    def __rmod__(self, other: int) -> Size:
        return self.axes.derive("%", other, self)

    def _split(self, by: int) -> tuple[Size, Size]:
        """`whole` and `rest` with `self == whole * by + rest`, and no factor of `rest` as large as `by`."""
        whole = {m: f // by for m, f in self.terms.items() if f // by}
        rest = {m: f % by for m, f in self.terms.items() if f % by}
        return self._make(whole), self._make(rest)

    def _divide(self, other: Dim) -> Size | None:
        """The exact quotient by a single monomial, where every term holds it."""
        if len(other.terms) != 1:
            return None
        ((divisor, by),) = other.terms.items()
        terms: dict[Monomial, int] = {}
        for monomial, factor in self.terms.items():
            rest = list(monomial)
            for index in divisor:
                if index not in rest or not self.axes.axes[index].low:
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
        elif not isinstance(other, int):
            return NotImplemented
        return self._ask("==", other)

    def __hash__(self) -> int:
        return hash(self.key())

    def __lt__(self, other: Size) -> bool:
        return self._ask("<", other)

    def __le__(self, other: Size) -> bool:
        return self._ask("<=", other)

    def __gt__(self, other: Size) -> bool:
        return not self._ask("<=", other)

    def __ge__(self, other: Size) -> bool:
        return not self._ask("<", other)

    def _ask(self, question: str, other: Size) -> bool:
        difference = self - other
        if isinstance(difference, Dim):
            return self.axes.ask(question, difference)
        return difference == 0 if question == "==" else difference < 0 if question == "<" else difference <= 0

    def __bool__(self) -> bool:
        return self != 0


Size = int | Dim
"""One dimension of a tensor, or a number of bytes."""

Shape = tuple[Size, ...]


# -- what makes axes of their own
@dataclass(frozen=True, slots=True)
class _Operation:
    bounds: Callable[[int, int, int, int], tuple[int, int]]
    """Of the result, from the bounds of left and right."""
    compute: Callable[[Array, Array], Array]


def _divisor_bounds(operation: str, right: Size) -> tuple[int, int]:
    """The bounds of `right`, from its values where it divides and seems to reach zero."""
    low, high = bounds(right)
    if low < 1 and operation in "//%":
        if isinstance(right, Dim):
            values = right.evaluate()
            namespace = values.__array_namespace__()
            low, high = int(namespace.min(values)), int(namespace.max(values))
        if low < 1:
            raise ValueError("a sweep divides by positive sizes only")
    return low, high


def _divide_bounds(low: int, high: int, least: int, most: int) -> tuple[int, int]:
    quotients = [a // b for a, b in combinations((low, high), (least, most))]
    return min(quotients), max(quotients)


def _remainder_bounds(low: int, high: int, _: int, most: int) -> tuple[int, int]:
    return (0, min(high, most - 1)) if low >= 0 else (0, most - 1)


def _with_namespace(name: str) -> Callable[[Array, Array], Array]:
    def compute(left: Array, right: Array) -> Array:
        namespace = (right if isinstance(left, int) else left).__array_namespace__()
        return getattr(namespace, name)(left, right)

    return compute


_OPERATIONS = {
    "//": _Operation(_divide_bounds, lambda left, right: left // right),
    "%": _Operation(_remainder_bounds, lambda left, right: left % right),
    "minimum": _Operation(lambda a, b, c, d: (min(a, c), min(b, d)), _with_namespace("minimum")),
    "maximum": _Operation(lambda a, b, c, d: (max(a, c), max(b, d)), _with_namespace("maximum")),
}


def bounds(size: Size) -> tuple[int, int]:
    """Two numbers that a size is between for every setting; the size itself, twice, where it is a plain one.

    >>> bounds(3)
    (3, 3)
    """
    return size.bounds() if isinstance(size, Dim) else (size, size)


def _key(size: Size) -> Any:
    return size.key() if isinstance(size, Dim) else size


# -- sizes of either kind
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
    difference = left - right
    low, high = bounds(difference)
    if low >= 0 or high <= 0:
        return left if (low >= 0) == (name == "maximum") else right
    assert isinstance(difference, Dim)
    return difference.axes.derive(name, left, right)


def undominated(sizes: list[Size]) -> list[Size]:
    """Those sizes that can be the largest for some setting: each of the others is nowhere above some kept one."""
    kept: list[Size] = []
    distinct = {_key(s): s for s in sizes}
    for size in sorted(distinct.values(), key=lambda s: -bounds(s)[1]):
        if not any(bounds(k - size)[0] >= 0 for k in kept):
            kept.append(size)
    return kept


def largest(sizes: list[Size]) -> Size:
    """The elementwise maximum of many sizes: an `int` if all are, else a `Dim`."""
    best, *others = undominated(sizes)
    for other in others:
        best = maximum(best, other)
    return best
