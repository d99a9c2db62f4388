"""Layers that repeat: which of them are built, and how often the others do what one of those does."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence


class Block(NamedTuple):
    """Layers that were built."""

    layers: range
    """Their places among all that were built."""
    more: int = 0
    """How many times as many follow and are alike."""


class Stack(NamedTuple):
    """A model's layers."""

    built: tuple[int, ...]
    """The numbers of the layers that are built."""
    blocks: tuple[Block, ...]


def stack_of(marks: Sequence[Hashable], last: int = 1) -> Stack:
    """Of what repeats more often than that, the first, the second and so many of the last are built.

    The first is entered otherwise than the others, and the last reads what all have read for the last time. Where a cut
    in one layer carries what the next one needs, the last two are their own.

    >>> stack_of("daaaaaa")
    Stack(built=(0, 1, 2, 6), blocks=(Block(layers=range(0, 1), more=0), Block(layers=range(1, 2), more=0), \
Block(layers=range(2, 3), more=3), Block(layers=range(3, 4), more=0)))
    """
    built: list[int] = []
    blocks: list[Block] = []

    def add(first: int, many: int, more: int = 0) -> None:
        blocks.append(Block(range(len(built), len(built) + many), more))
        built.extend(range(first, first + many))

    at, count = 0, len(marks)
    while at < count:
        period, times = max(
            ((p, _times(marks, at, p)) for p in range(1, (count - at) // (3 + last) + 1)),
            key=lambda one: (one[1] - 2 - last) * one[0],
            default=(1, 1),
        )
        if times < 3 + last:
            add(at, 1)
            at += 1
            continue
        add(at, period)
        add(at + period, period, times - 2 - last)
        at += period * times
        for left in range(last, 0, -1):
            add(at - left * period, period)
    return Stack(tuple(built), tuple(blocks))


def _times(marks: Sequence[Hashable], at: int, period: int) -> int:
    """How often what begins there is repeated at once."""
    end = at + period
    while end < len(marks) and marks[end] == marks[end - period]:
        end += 1
    return (end - at) // period


def whole(count: int) -> Stack:
    """All of them."""
    return Stack(tuple(range(count)), tuple(Block(range(n, n + 1)) for n in range(count)))
