"""The ops of a compressed trace, written out for every block of its stacks."""

from __future__ import annotations

from bisect import bisect_right
from itertools import groupby

from weigh.trace.events import Call, Repeat, Span, Trace
from weigh.trace.paths import moved


def expand_calls(trace: Trace, starts: list[int]) -> list[Call]:
    """Every op in order. `starts` says how many events of the expanded trace happen before each span.

    Raises `ValueError` where the ops of a stack's second and last blocks do not follow each other.
    """
    place = _Place(trace, starts)
    partners = {r.second: (r, r.last) for r in trace.repeats} | {r.last: (r, r.second) for r in trace.repeats}
    groups = [(unit, list(calls)) for unit, calls in groupby(trace.calls, lambda c: c.unit)]
    result: list[Call] = []
    number = 0
    while number < len(groups):
        unit, calls = groups[number]
        number += 1
        if unit not in partners:
            result += [_copy(c, place.real(c.event), c.path) for c in calls]
            continue
        repeat, partner = partners[unit]
        if number == len(groups) or groups[number][0] != partner or len(groups[number][1]) != len(calls):
            raise ValueError(
                f"the ops of block {unit} at event {calls[0].event} are not followed by those of {partner}"
            )
        result += [_copy(c, place.real(c.event, ending=True), c.path) for c in calls]
        calls = groups[number][1]
        number += 1
        ascending = partner == repeat.last
        for copy in range(1, repeat.extra + 1) if ascending else range(repeat.extra, 0, -1):
            shift = repeat.period * (copy - (repeat.extra + 1 if ascending else 0))
            turn = copy - 1 if ascending else repeat.extra - copy
            result += [_copy(c, place.copied(c.event, repeat, turn), moved(c.path, repeat.path, shift)) for c in calls]
        result += [_copy(c, place.real(c.event), c.path) for c in calls]
    return result


def _copy(call: Call, event: int, path: str) -> Call:
    return Call(event, call.op, path, call.flops, call.bytes_read, call.bytes_written, None)


class _Place:
    """Where an event of the compressed trace stands in the expanded one."""

    def __init__(self, trace: Trace, starts: list[int]) -> None:
        spans = list(zip(trace.spans, starts, strict=True))
        self.plain = [(s.start, at) for s, at in spans if s.unit is None]
        self.copies: list[tuple[int, int, Span]] = [(s.start, at, s) for s, at in spans if s.unit is not None]
        self.first = {s.start: at for s, at in reversed(spans)}

    def real(self, event: int, ending: bool = False) -> int:
        """After this many events of the real blocks; `ending`: before the copies that come next."""
        if ending and event in self.first:
            return self.first[event]
        start, at = self.plain[bisect_right(self.plain, event, key=lambda p: p[0]) - 1]
        return at + event - start

    def copied(self, event: int, repeat: Repeat, turn: int) -> int:
        """After this many, in the `turn`-th copy to run."""
        number = bisect_right(self.copies, event, key=lambda c: c[0]) - 1
        if number >= 0:
            start, at, span = self.copies[number]
            if event <= span.stop and span.unit in (repeat.second, repeat.last):
                return at + turn * (span.stop - span.start) + event - start
        return self.real(event)
