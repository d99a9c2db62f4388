"""Two traces side by side: peaks, what they are made of, and where the two part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby, zip_longest

from weigh.records import dataclass, field
from weigh.trace.events import LOAD, PURPOSES, Allocation, Trace
from weigh.trace.expand import expand
from weigh.trace.peak import PhasePeak, breakdown, phase_peaks
from weigh.trace.text import allocation_text


@dataclass(frozen=True, slots=True)
class Pair:
    """A figure of both; None where one of them has no such thing."""

    name: str
    left: int | None
    right: int | None

    @property
    def difference(self) -> int:
        """Right minus left, nothing counted as zero."""
        return (self.right or 0) - (self.left or 0)


@dataclass(frozen=True, slots=True)
class Parting:
    """The first event at which the two do not do the same."""

    event: int
    """Its number in the left one, from 0, with repeats written out."""
    phase: str
    """The phase and round of the left one, there."""
    left: str
    right: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare` found."""

    left: str
    right: str
    peak: Pair
    purposes: tuple[Pair, ...]
    """The bytes of every purpose, at each one's own peak."""
    phases: tuple[Pair, ...]
    """The peak of every phase."""
    parting: Parting | None
    """None where the two do the same from the first event to the last."""
    others: dict[str, tuple[Pair, ...]] = field(default_factory=dict)
    """Other divisions of the bytes at each one's own peak, by their names."""

    def sections(self) -> dict[str, tuple[Pair, ...]]:
        """Every division, by its title."""
        others = {f"at the peak, by {name}:": pairs for name, pairs in self.others.items()}
        return {"at the peak:": self.purposes, **others, "by phase:": self.phases}

    def text(self) -> str:
        """Small tables, and the parting."""
        sections = self.sections()
        width = max(len(p.name) for p in (self.peak, *(p for pairs in sections.values() for p in pairs))) + 2
        lines = [f"{'':{width}}{self.left:>20}{self.right:>20}{'difference':>20}", _row(self.peak, width)]
        for title, pairs in sections.items():
            lines += ["", title, *(_row(pair, width) for pair in pairs)]
        if self.parting is None:
            return "\n".join([*lines, "", "The two do the same, event by event."])
        p = self.parting
        lines += ["", f"They part at event {p.event:,}, in {p.phase}:", f"  {self.left}: {p.left}"]
        return "\n".join([*lines, f"  {self.right}: {p.right}"])


def _row(pair: Pair, width: int) -> str:
    cells = ["-" if n is None else f"{n:,}" for n in (pair.left, pair.right)]
    return f"{pair.name:{width}}{cells[0]:>20}{cells[1]:>20}{pair.difference:>+20,}"


def compare(
    a: Trace,
    b: Trace,
    names: tuple[str, str] = ("left", "right"),
    by: Mapping[str, Callable[[Allocation], str]] | None = None,
    loading: bool = True,
) -> Comparison:
    """Lay two traces beside each other. Plain sizes only.

    Events are alike where the change in bytes is the same, and one's path leads to the other's: a snapshot of a real
    run knows no modules, and who records a parameter may know only its module. Deaths that follow each other have no
    order.

    `by` names further divisions of the peak. Without `loading` the two may load the model each in its own way: they
    part only after that.
    """
    a, b = expand(a), expand(b)
    peaks = phase_peaks(a), phase_peaks(b)
    highest = [max(p, key=lambda one: _plain(one.peak)) for p in peaks]
    made_of = [
        breakdown(trace, top.moment, lambda one: one.purpose) if top.moment else {}
        for trace, top in zip((a, b), highest, strict=True)
    ]
    present = [p for p in PURPOSES if any(p in parts for parts in made_of)]
    return Comparison(
        *names,
        Pair("peak", _plain(highest[0].peak), _plain(highest[1].peak)),
        tuple(Pair(p, *(_plain(parts.get(p, 0)) for parts in made_of)) for p in present),
        tuple(_phases(*peaks)),
        _parting(a, b, *((0, 0) if loading else (_loaded(a), _loaded(b)))),
        {name: _divided((a, b), highest, key) for name, key in (by or {}).items()},
    )


def _divided(
    traces: tuple[Trace, Trace], highest: list[PhasePeak], key: Callable[[Allocation], str]
) -> tuple[Pair, ...]:
    left, right = (
        breakdown(trace, top.moment, key) if top.moment else {} for trace, top in zip(traces, highest, strict=True)
    )
    return tuple(Pair(name, _plain(left.get(name, 0)), _plain(right.get(name, 0))) for name in {**left, **right})


def _loaded(trace: Trace) -> int:
    """The event at which the first phase after loading begins."""
    return next((m.event for m in trace.marks if m.phase != LOAD), 0)


def _plain(size: object) -> int:
    if not isinstance(size, int):
        raise TypeError("sweeps cannot be compared: run a single setting")
    return size


def _phases(left: list[PhasePeak], right: list[PhasePeak]) -> list[Pair]:
    """In order of the left; a phase that comes several times in a round (micro-batches) is numbered."""
    keyed = [_keyed(left), _keyed(right)]
    return [Pair(name, keyed[0].get(name), keyed[1].get(name)) for name in dict.fromkeys([*keyed[0], *keyed[1]])]


def _keyed(peaks: list[PhasePeak]) -> dict[str, int]:
    result: dict[str, int] = {}
    for peak in peaks:
        name = f"{peak.mark.phase} {peak.mark.round}"
        number = 2
        while name in result:
            name = f"{peak.mark.phase} {peak.mark.round} ({number})"
            number += 1
        result[name] = _plain(peak.peak)
    return result


def _parting(a: Trace, b: Trace, start_a: int, start_b: int) -> Parting | None:
    pairs = zip_longest(_settled(a, start_a), _settled(b, start_b), fillvalue=0)
    for number, (x, y) in enumerate(pairs, start_a):
        left, right = _happening(a, x), _happening(b, y)
        if left[0] != right[0] or not (left[1].startswith(right[1]) or right[1].startswith(left[1])):
            phase = [m for m in a.marks if m.event <= number][-1] if a.marks else None
            where = f"{phase.phase} {phase.round}" if phase else "no phase"
            return Parting(number, where, left[2], right[2])
    return None


def _settled(trace: Trace, start: int) -> list[int]:
    """The events from `start` on, deaths that follow each other by size: in what order they die changes nothing."""
    result: list[int] = []
    for dies, run in groupby(trace.events[start:], lambda event: event < 0):
        found = list(run)
        result += sorted(found, key=lambda e: _order(trace.allocations[-e - 1])) if dies else found
    return result


def _order(allocation: Allocation) -> tuple[int, str]:
    return -_plain(allocation.num_bytes), allocation.path


def _happening(trace: Trace, event: int) -> tuple[int, str, str]:
    """The change in bytes, the path, and both as text."""
    if not event:
        return 0, "", "has ended"
    allocation: Allocation = trace.allocations[abs(event) - 1]
    num_bytes = _plain(allocation.num_bytes)
    change = num_bytes if event > 0 else -num_bytes
    return change, allocation.path, f"{change:+,} {allocation_text(allocation)}"
