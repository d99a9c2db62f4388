"""Levels and peaks: how many bytes were live, when the most were, and who owned them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from itertools import accumulate
from typing import TypeVar

from weigh.dims import Dim, Size, largest, undominated
from weigh.records import dataclass
from weigh.trace.events import Allocation, Mark, Span, Trace

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Moment:
    """A place in a trace: just after event `event` of the `copy`-th time that span number `span` runs.

    `event` is the span's start minus one where the level of the moment was inherited from before.
    """

    span: int
    copy: int
    event: int


@dataclass(frozen=True, slots=True)
class PhasePeak:
    """The bytes live at the start, at the highest point and at the end of one phase."""

    mark: Mark
    before: Size
    peak: Size
    after: Size
    moment: Moment | None
    """Where the peak is first reached; None in a sweep, where it differs from setting to setting."""


def phase_peaks(trace: Trace, rounded: bool = False) -> list[PhasePeak]:
    """The peak of every phase, in order.

    `rounded` counts each storage in multiples of 512 bytes, as the CUDA allocator does.
    """
    changes = rounded_changes(trace) if rounded else trace.changes()
    symbolic = any(isinstance(c, Dim) for c in changes)
    result: list[PhasePeak] = []
    level: Size = 0
    for mark, numbers in trace.sections():
        before = level
        candidates: list[tuple[Size, Moment]] = [(level, Moment(numbers.start, 0, mark.event - 1))]
        for number in numbers:
            span = trace.spans[number]
            levels = list(accumulate(changes[span.start : span.stop], initial=level))
            net = levels[-1] - level
            if symbolic:
                tops = undominated(levels)
                candidates += [(v, _NOWHERE) for v in tops]
                if span.count > 1:
                    candidates += [(v + net * (span.count - 1), _NOWHERE) for v in tops]
            else:
                top = max(levels)
                event = span.start + levels.index(top) - 1
                candidates.append((top, Moment(number, 0, event)))
                if span.count > 1 and net > 0:
                    candidates.append((top + net * (span.count - 1), Moment(number, span.count - 1, event)))
            level = level + net * span.count
        if symbolic:
            result.append(PhasePeak(mark, before, largest([c[0] for c in candidates]), level, None))
        else:
            peak, moment = candidates[0]
            for value, where in candidates[1:]:
                if value > peak:
                    peak, moment = value, where
            result.append(PhasePeak(mark, before, peak, level, moment))
    return result


_NOWHERE = Moment(-1, 0, -1)


def rounded_changes(trace: Trace) -> list[Size]:
    """The signed bytes of every event, each storage rounded up to 512 bytes.

    Source: CUDACachingAllocator.cpp, kMinBlockSize.
    """
    sizes = [(a.num_bytes + 511) // 512 * 512 for a in trace.allocations]
    return [sizes[e - 1] if e > 0 else -sizes[-e - 1] for e in trace.events]


def live_counts(trace: Trace, moment: Moment) -> dict[int, int]:
    """How many times each allocation is live at a moment; repeated ones count once per copy.

    A storage that a later copy frees for an earlier one shows as a negative count beside its twin's positive one, so
    sum over a key that twins share (purpose, op, component), not over single allocations.
    """
    counts: dict[int, int] = {}
    for span in trace.spans[: moment.span]:
        _count(trace, counts, span.start, span.stop, span.count)
    end = len(trace.events)
    here = trace.spans[moment.span] if moment.span < len(trace.spans) else Span(end, end, 1)
    _count(trace, counts, here.start, here.stop, moment.copy)
    _count(trace, counts, here.start, moment.event + 1, 1)
    return {index: count for index, count in counts.items() if count}


def _count(trace: Trace, counts: dict[int, int], start: int, stop: int, times: int) -> None:
    if times:
        for event in trace.events[start:stop]:
            index = abs(event) - 1
            counts[index] = counts.get(index, 0) + (times if event > 0 else -times)


def breakdown(trace: Trace, moment: Moment, key: Callable[[Allocation], K]) -> dict[K, Size]:
    """The live bytes at a moment, summed by `key`, largest first."""
    totals: dict[K, Size] = {}
    for index, count in live_counts(trace, moment).items():
        allocation = trace.allocations[index]
        name = key(allocation)
        totals[name] = totals.get(name, 0) + allocation.num_bytes * count
    kept = {k: v for k, v in totals.items() if not isinstance(v, int) or v}
    if any(isinstance(v, Dim) for v in kept.values()):
        return kept
    return dict(sorted(kept.items(), key=lambda item: -int(item[1])))  # type: ignore[arg-type]


def timeline(trace: Trace) -> list[tuple[Moment, int]]:
    """The level after every event that happens, in order (repeated spans run through). Plain sizes only."""
    changes = trace.changes()
    result: list[tuple[Moment, int]] = []
    level = 0
    for number, span in enumerate(trace.spans):
        for copy in range(span.count):
            for event in range(span.start, span.stop):
                change = changes[event]
                assert isinstance(change, int)
                level += change
                result.append((Moment(number, copy, event), level))
    return result
