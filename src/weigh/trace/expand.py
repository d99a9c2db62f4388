"""Writing a compressed trace out: every block of a stack with its own storages, as if all had been run.

A compressed stack holds three real runs of its blocks: the first, the second and the last (see `Repeat`). The `extra`
blocks between second and last are copies, numbered so that the second is copy 0 and the last copy `extra + 1`. Second
and last did the same thing event by event, so what an event of theirs refers to is one of three things:

- the block's own storage: that of second and that of last, born at the same place of their runs, are one `_Family`;
- its predecessor's: last then refers to second's member of a family, since second is what ran before it;
- its successor's: second then refers to last's member.

In a copy these become the family's members at the copy's own number, one below and one above; and the same holds for
last and second themselves, whose neighbours are now the copies.
"""

from __future__ import annotations

from weigh.trace.calls import expand_calls
from weigh.trace.events import Allocation, Mark, Repeat, Span, Trace
from weigh.trace.paths import moved


def expand(trace: Trace) -> Trace:
    """The same events without repeats: a trace of one span, whose peaks, phases and owners are those of `trace`.

    Raises `ValueError` where second and last are not alike in what they refer to.
    """
    if not trace.repeats:
        return trace
    return _Expansion(trace).result()


class _Family:
    """The storages that the copies of one block have in the same place: their numbers in the expanded trace."""

    __slots__ = ("members", "repeat")

    def __init__(self, repeat: Repeat) -> None:
        self.repeat = repeat
        self.members = [-1] * (repeat.extra + 2)


class _Expansion:
    """The work in progress: where each storage of the compressed trace went, and the events so far."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.repeats = {u: r for r in trace.repeats for u in (r.second, r.last)}
        self.family_of: dict[int, tuple[_Family, int]] = {}
        """Storage of second or last -> its family, and its place in it."""
        self.elsewhere: dict[int, tuple[_Family, int]] = {}
        """Event of second's or last's real run that frees a neighbour's storage -> which one it is now."""
        self.numbers: dict[int, int] = {}
        self.allocations: list[Allocation] = []
        self.events: list[int] = []
        self.starts: list[int] = []
        """How many events have happened when each span begins."""
        templates = [(s, self.repeats[s.unit]) for s in trace.spans if s.unit is not None]
        for span, repeat in templates:
            self._find_families(span, repeat)
        self.plans = {span.start: self._plan(span, repeat) for span, repeat in templates}

    def result(self) -> Trace:
        """Run through the spans."""
        for span in self.trace.spans:
            self.starts.append(len(self.events))
            if span.unit is None:
                self._real(span)
            else:
                self._copies(span, self.repeats[span.unit])
        marks = [Mark(self._position(m.event), m.phase, m.round) for m in self.trace.marks]
        calls = expand_calls(self.trace, self.starts)
        return Trace(self.allocations, self.events, marks, calls)

    def _position(self, event: int) -> int:
        for span, start in zip(self.trace.spans, self.starts, strict=True):
            if span.start == event:
                return start
        return len(self.events)

    # -- what refers to what
    def _pairs(self, span: Span, repeat: Repeat) -> list[tuple[int, int]]:
        """The event numbers of second's and last's runs, side by side."""
        before = range(2 * span.start - span.stop, span.start)
        after = range(span.start, span.stop)
        return list(zip(before, after, strict=True) if span.unit == repeat.last else zip(after, before, strict=True))

    def _find_families(self, span: Span, repeat: Repeat) -> None:
        events = self.trace.events
        for second, last in self._pairs(span, repeat):
            if events[second] > 0:
                family = _Family(repeat)
                self.family_of[events[second] - 1] = family, 0
                self.family_of[events[last] - 1] = family, repeat.extra + 1

    def _plan(self, span: Span, repeat: Repeat) -> list[tuple[int, _Family, int]]:
        """For every event of the span: birth (1) or death (-1), the family, and whose member relative to the copy."""
        events, plan = self.trace.events, []
        end = repeat.extra + 1
        for second, last in self._pairs(span, repeat):
            sign = 1 if events[second] > 0 else -1
            p, q = self._member(events[second], repeat), self._member(events[last], repeat)
            if p and q and (p[1], q[1]) == (0, end):
                plan.append((sign, (q if span.unit == repeat.last else p)[0], 0))
            elif p and not q and p[1] == end:
                plan.append((sign, p[0], 1))
                self.elsewhere[second] = p[0], 1
            elif q and not p and q[1] == 0:
                plan.append((sign, q[0], -1))
                self.elsewhere[last] = q[0], repeat.extra
            else:
                raise ValueError(f"events {second} and {last} of {repeat.path} refer to different things")
        return plan

    def _member(self, event: int, repeat: Repeat) -> tuple[_Family, int] | None:
        found = self.family_of.get(abs(event) - 1)
        return found if found and found[0].repeat is repeat else None

    # -- writing
    def _real(self, span: Span) -> None:
        for number in range(span.start, span.stop):
            event = self.trace.events[number]
            if event < 0:
                there = self.elsewhere.get(number)
                self.events.append(-1 - (there[0].members[there[1]] if there else self.numbers[-event - 1]))
                continue
            place = self._born(self.trace.allocations[event - 1], None, 0)
            self.numbers[event - 1] = place
            if event - 1 in self.family_of:
                family, copy = self.family_of[event - 1]
                family.members[copy] = place

    def _copies(self, span: Span, repeat: Repeat) -> None:
        plan = self.plans[span.start]
        ascending = span.unit == repeat.last
        for copy in range(1, span.count + 1) if ascending else range(span.count, 0, -1):
            shift = repeat.period * (copy - (span.count + 1 if ascending else 0))
            for event, (sign, family, offset) in zip(range(span.start, span.stop), plan, strict=True):
                if sign < 0:
                    self.events.append(-1 - family.members[copy + offset])
                else:
                    template = self.trace.allocations[self.trace.events[event] - 1]
                    family.members[copy] = self._born(template, repeat, shift)

    def _born(self, a: Allocation, repeat: Repeat | None, shift: int) -> int:
        path = a.path if repeat is None else moved(a.path, repeat.path, shift)
        self.allocations.append(Allocation(a.num_bytes, a.op, path, a.purpose, a.phase, a.shape, a.dtype, None))
        self.events.append(len(self.allocations))
        return len(self.allocations) - 1
