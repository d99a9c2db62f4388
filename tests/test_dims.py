import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weigh.dims import (
    AmbiguousDimension,
    Axes,
    Dim,
    Size,
    bounds,
    largest,
    maximum,
    minimum,
    product,
    round_up,
    undominated,
)

quick = settings(max_examples=80, deadline=None, derandomize=True, database=None)
LENGTH = 5

Pair = tuple[Size, Any]
"""A size, and the array that it should be."""


@st.composite
def pairs(draw: st.DrawFn, leaves: list[Pair]) -> Pair:
    """A size built by random arithmetic, and the same arithmetic done by numpy."""
    size, array = draw(st.sampled_from(leaves))
    for _ in range(draw(st.integers(0, 5))):
        other, values = draw(st.sampled_from(leaves) | st.integers(1, 40).map(lambda n: (n, np.full(LENGTH, n))))
        ours, numpys = draw(st.sampled_from(STEPS))
        size, array = ours(size, other), numpys(array, values)
    return size, array


STEPS: list[tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]] = [
    (operator.add, np.add),
    (operator.mul, np.multiply),
    (operator.floordiv, np.floor_divide),
    (minimum, np.minimum),
    (maximum, np.maximum),
    (lambda a, b: (a + b) % b, lambda a, b: (a + b) % b),
    (lambda a, b: 3 * a + 100 - a - b, lambda a, b: 2 * a + 100 - b),
    (lambda a, b: b // (a * a + 1) + 1, lambda a, b: b // (a * a + 1) + 1),
    (lambda a, b: 900 // b - 900 % b - a, lambda a, b: 900 // b - 900 % b - a),
    (lambda a, b: (a * b + 511) // 512 + 1, lambda a, b: (a * b + 511) // 512 + 1),
    (lambda a, b: round_up(a, 32) + b, lambda a, b: (a + 31) // 32 * 32 + b),
    (lambda a, b: a * b // b + b, lambda a, b: a + b),
]


@st.composite
def sweeps(draw: st.DrawFn, count: int) -> tuple[Axes, list[Pair]]:
    axes = Axes()
    values = st.lists(st.integers(1, 60), min_size=LENGTH, max_size=LENGTH)
    arrays = [np.array(draw(values)) for _ in range(2)]
    leaves: list[Pair] = [(axes.new(a), a) for a in arrays]
    return axes, [draw(pairs(leaves)) for _ in range(count)]


def value_of(axes: Axes, size: Size) -> Any:
    return np.broadcast_to(axes.evaluate([size])[0], (LENGTH,))


@quick
@given(sweeps(1))
def test_arithmetic_is_numpys(sweep: tuple[Axes, list[Pair]]) -> None:
    axes, [(size, expected)] = sweep
    low, high = bounds(size)
    if isinstance(size, Dim) and size.magnitude() >= 2**63:
        with pytest.raises(OverflowError):
            size.evaluate()
        return
    assert (value_of(axes, size) == expected).all()
    assert low <= expected.min()
    assert expected.max() <= high
    for start in range(LENGTH):
        assert np.all(axes.evaluate([size], start, start + 1)[0] == expected[start])
    if isinstance(size, Dim):
        assert np.allclose(size.evaluate_float(), expected, rtol=1e-12)
        assert (value_of(axes, size % 7) == expected % 7).all()


@quick
@given(sweeps(2), st.sampled_from([operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]))
def test_a_question_has_the_answer_that_all_settings_agree_on(
    sweep: tuple[Axes, list[Pair]], question: Callable[[Any, Any], Any]
) -> None:
    _, [(left, a), (right, b)] = sweep
    answers = question(a, b)
    if answers.all() or not answers.any():
        for _ in range(2):
            assert bool(question(left, right)) is bool(answers.all())
        return
    with pytest.raises(AmbiguousDimension) as caught:
        question(left, right)
    parts = {tuple(answers[caught.value.condition]), tuple(answers[~caught.value.condition])}
    assert parts == {(True,) * int(answers.sum()), (False,) * int((~answers).sum())}


@quick
@given(sweeps(6))
def test_the_largest_is_numpys_and_nothing_that_wins_is_left_out(sweep: tuple[Axes, list[Pair]]) -> None:
    axes, candidates = sweep
    sizes, expected = [s for s, _ in candidates], np.max([a for _, a in candidates], axis=0)
    kept = undominated(sizes)
    assert (np.max([value_of(axes, s) for s in kept], axis=0) == expected).all()
    assert (value_of(axes, largest(sizes)) == expected).all()
    assert (value_of(axes, largest([*sizes, 7])) == np.maximum(expected, 7)).all()


def test_sizes_that_are_plain_numbers_stay_plain_numbers() -> None:
    axes = Axes()
    n = axes.new(np.array([3, 5]))
    for plain in (n - n, n * 0, n // n, 4 * n % 2, n * 6 // (2 * n), (n + 1 - n) // 2, n // 7, minimum(n, 2)):
        assert isinstance(plain, int)
    assert maximum(n, 2) is n
    assert largest([2, 9, 4]) == 9
    assert product((n, 2, 3)) == 6 * n
    assert len({n * 2, n + n, n}) == 2
    assert bool(n)


def test_rounding_takes_out_what_is_round_already() -> None:
    axes = Axes()
    n = axes.new(np.array([3, 5]))
    assert round_up(512 * n, 512) == 512 * n
    assert len(axes.axes) == 1
    assert round_up(1024 * n + 3, 512) == 1024 * n + 512
    assert len(axes.axes) == 1
    assert list((round_up(516 * n, 512)).evaluate()) == [2048, 3072]


def test_what_does_not_fit_64_bits_is_refused_or_done_in_floats() -> None:
    axes = Axes()
    n = axes.new(np.array([2**31, 5]))
    big = n * n * 3
    with pytest.raises(OverflowError):
        big.evaluate()
    assert list(big.evaluate_float()) == [3.0 * 2**62, 75.0]
    assert big > 74
    assert big - 1 != 0


@pytest.mark.parametrize("array", [[0, 1], [-3, 4], [], [[1, 2]]])
def test_arrays_that_are_no_sizes_are_refused(array: list[Any]) -> None:
    with pytest.raises(ValueError, match="dimension"):
        Axes().new(np.array(array, dtype=np.int64))
    axes = Axes()
    axes.new(np.array([1, 2, 3]))
    with pytest.raises(ValueError, match="one length"):
        axes.new(np.array([1, 2]))


def test_small_arrays_of_narrow_integers_do_not_wrap_around() -> None:
    n = Axes().new(np.array([100, 120], dtype=np.int8))
    assert list((n * n).evaluate()) == [10000, 14400]


def test_division_by_what_may_be_zero_is_refused() -> None:
    n = Axes().new(np.array([1, 2]))
    with pytest.raises(ValueError, match="positive"):
        n * n // (n - 1)
