"""Stacks of identical blocks, of which only three are run.

A transformer's blocks 2, 3, ... n-1 do the same to memory: what the second of them adds, each of the others adds too.
So a stack builds and runs three groups of blocks (the first, the second and the last) and tells the ledger how many
more stand between the second and the last. The ledger checks that second and last were alike event by event (bytes
and ops) and puts the rest between them, in whichever direction they ran (forward, backward, an optimizer's loop over
the parameters). Where they are not alike it raises `NotSteady`, and the run is made again with every block.

The unit that repeats is `period` blocks long: the period of the layer pattern, widened by whatever reaches across
blocks. Blocks that do not fill a period stand at the end and are run as they are, and so are
`state.trailing` more where a technique treats them otherwise, a `lead` at the front that makes what the others share,
and a `tail` that is the first to give something shared a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from weigh.ghost.state import state
from weigh.trace.events import Repeat

if TYPE_CHECKING:
    from weigh.ghost.nn import Module


@contextmanager
def unrolled(on: bool = True) -> Iterator[None]:
    """Every stack built in the body has all its blocks."""
    before, state.unrolled = state.unrolled, on
    try:
        yield
    finally:
        state.unrolled = before


@contextmanager
def one_of_each() -> Iterator[None]:
    """Of every stack built in the body one group of blocks stands for all that are alike.

    For runs whose calls are counted and whose memory is not asked for: nothing is there to compare it with.
    """
    before, state.one_of_each = state.one_of_each, True
    try:
        yield
    finally:
        state.one_of_each = before


class Plan:
    """Which of `length` blocks are real, to which unit each belongs, and how many blocks each stands for."""

    __slots__ = ("counts", "indices", "repeat", "units")

    def __init__(self, path: str, length: int, period: int, lead: int = 0, tail: int = 0) -> None:
        trailing = min(max(state.trailing, tail), length - lead)
        groups, rest = divmod(length - lead - trailing, period)
        rest += trailing
        self.indices = list(range(length))
        self.units: list[int | None] = [None] * length
        self.counts = [1] * length
        self.repeat: int | None = None
        """Its place among the ledger's repeats."""
        if state.unrolled or groups <= 3:
            return
        ledger = state.ledger
        first = 3 * len(ledger.repeats)
        if state.one_of_each:
            self.repeat = len(ledger.repeats)
            ledger.repeats.append(Repeat(path, first, first, first, period, groups - 1))
            self.indices = [*range(lead + period), *range(lead + groups * period, length)]
            self.units = [None] * lead + [first] * period + [None] * rest
            self.counts = [1] * lead + [groups] * period + [1] * rest
            return
        extra = groups - 3
        self.repeat = len(ledger.repeats)
        ledger.repeats.append(Repeat(path, first, first + 1, first + 2, period, extra))
        last = lead + (groups - 1) * period
        self.indices = [*range(lead + 2 * period), *range(last, length)]
        self.units = [None] * lead + [first + group for group in range(3) for _ in range(period)] + [None] * rest
        self.counts = [1] * (lead + period) + [1 + extra] * period + [1] * (period + rest)


def blocks_in_turn(modules: list[Module], units: list[int | None]) -> Iterator[Module]:
    """The blocks one after the other, each inside its unit until the next one starts."""
    ledger = state.ledger
    try:
        for module, unit in zip(modules, units, strict=True):
            ledger.unit = unit
            yield module
    finally:
        ledger.unit = None


Build = Callable[[int], "Module"]
