"""The ledger.

The running account that storages report to. It is the one thing that changes while a run is under way.
"""

from __future__ import annotations

from collections.abc import Callable

from weigh.dims import Shape, Size
from weigh.trace.events import (
    ACTIVATION,
    BACKWARD,
    LOAD,
    STEP,
    TEMPORARY,
    Allocation,
    Call,
    Mark,
    Repeat,
    Span,
    Trace,
)


class NotSteady(Exception):
    """Two blocks that should be alike were not: the stack has to be run block by block."""


class Ledger:
    """Writes the events of a trace.

    `unit` names the repeated block that is running (None outside of one): see `weigh.ghost.repeat`.
    """

    def __init__(self) -> None:
        self.allocations: list[Allocation] = []
        self.events: list[int] = []
        self.calls: list[Call] = []
        self.marks: list[Mark] = []
        self.repeats: list[Repeat] = []
        self.phase = LOAD
        self.path = ""
        self.unit: int | None = None
        self.by_owner = False
        """A list of tensors is being worked on, outside every block: what dies belongs to the block that owns it."""
        self.on_phase: Callable[[str], None] | None = None
        """What is told that a phase begins, after it has begun."""
        self.recomputing = False
        """A checkpointed block runs forward again: what is born is activations, though in the backward pass."""
        self._stray: int | None = None
        self._runs: list[tuple[int, int | None]] = [(0, None)]
        self._run_unit: int | None = None
        self.mark(LOAD, 0)

    def mark(self, phase: str, round: int) -> None:
        """A new phase begins."""
        self.phase = phase
        self.marks.append(Mark(len(self.events), phase, round))
        if self.on_phase is not None:
            self.on_phase(phase)

    def allocate(
        self, num_bytes: Size, op: str, shape: Shape, dtype: str, purpose: str | None, unit: int | None
    ) -> int:
        """Note a birth.

        Returns the storage's number. A storage made outside every block can be given its owner's `unit`.
        """
        if self.unit is not None:
            unit = self.unit
        if unit != self._run_unit:
            self._run_unit = unit
            self._runs.append((len(self.events), unit))
        if purpose is None:
            temporary = (self.phase == BACKWARD and not self.recomputing) or self.phase == STEP
            purpose = TEMPORARY if temporary else ACTIVATION
        self.allocations.append(Allocation(num_bytes, op, self.path, purpose, self.phase, shape, dtype, unit))
        number = len(self.allocations)
        self.events.append(number)
        return number

    def free(self, number: int) -> None:
        """Note a death."""
        unit = self.unit
        if unit is None:
            owner = self.allocations[number - 1].unit
            if self.by_owner:
                unit = owner
            elif owner is not None and owner % 3 == 1:
                self._stray = number
        if unit != self._run_unit:
            self._run_unit = unit
            self._runs.append((len(self.events), unit))
        self.events.append(-number)

    def cut(self) -> None:
        """One pass over a list of tensors ends here: what follows is not part of it, even in the same block.

        Inside a block there is no pass over all of them.
        """
        if self.unit is not None:
            return
        self._run_unit = None
        self._runs.append((len(self.events), None))

    def call(self, op: str, flops: Size, bytes_read: Size, bytes_written: Size, unit: int | None = None) -> None:
        """Note that an op ran, for the block that is running or else for the given one."""
        if self.unit is not None:
            unit = self.unit
        self.calls.append(Call(len(self.events), op, self.path, flops, bytes_read, bytes_written, unit))

    def relabel(self, number: int, purpose: str, path: str | None = None) -> None:
        """Say what a storage has become (a temporary that is now a gradient)."""
        allocation = self.allocations[number - 1]
        allocation.purpose = purpose
        if path is not None:
            allocation.path = path

    def trace(self) -> Trace:
        """The trace so far.

        Raises `NotSteady` where blocks that stand for others differ from them.
        """
        return Trace(
            list(self.allocations),
            list(self.events),
            list(self.marks),
            list(self.calls),
            self._spans(),
            list(self.repeats),
        )

    def _spans(self) -> list[Span]:
        """Where the blocks in the middle of each stack belong.

        Between its second and its last, whichever order they run in.
        """
        if self._stray is not None:
            raise NotSteady(f"{self.allocations[self._stray - 1]} stands for many and died outside of its block")
        runs = [*self._runs, (len(self.events), None)]
        partner = {r.second: (r.last, r.extra) for r in self.repeats} | {
            r.last: (r.second, r.extra) for r in self.repeats
        }
        partner = {unit: other for unit, other in partner.items() if other[0] != unit}  # else one stands for all
        spans: list[Span] = []
        done = 0
        number = 0
        while number < len(runs) - 1:
            start, unit = runs[number]
            stop = runs[number + 1][0]
            number += 1
            if unit not in partner or start == stop:
                continue
            other, extra = partner[unit]
            if number >= len(runs) - 1 or runs[number][1] != other:
                raise NotSteady(f"block {unit} runs at event {start} without block {other} after it")
            first, (start, stop) = (start, stop), (runs[number][0], runs[number + 1][0])
            number += 1
            self._check_alike(first, (start, stop))
            if start > done:
                spans.append(Span(done, start, 1))
            spans.append(Span(start, stop, extra, other))
            done = start
        if done < len(self.events) or not spans:
            spans.append(Span(done, len(self.events), 1))
        return spans

    def _check_alike(self, first: tuple[int, int], second: tuple[int, int]) -> None:
        if first[1] - first[0] != second[1] - second[0]:
            raise NotSteady(f"events {first} and {second} should be alike")
        allocations, events = self.allocations, self.events
        for a, b in zip(range(*first), range(*second), strict=True):
            left, right = events[a], events[b]
            if (left > 0) != (right > 0):
                raise NotSteady(f"events {a} and {b} should be alike")
            x, y = allocations[abs(left) - 1], allocations[abs(right) - 1]
            if x.num_bytes != y.num_bytes or (left > 0 and x.op != y.op):
                raise NotSteady(f"{x} and {y} should be alike")
