"""The memory of a run, digested: the peak of every phase, and who owns the highest.

Bytes are counted as the device's allocator counts them: CUDA's gives every storage a multiple of 512 bytes
(CUDACachingAllocator.cpp, `kMinBlockSize`), the CPU's what is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from weigh.report.parts import pattern
from weigh.trace.peak import Moment, live_counts, phase_peaks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from weigh.report.parts import Parts
    from weigh.trace.events import Allocation, Trace
    from weigh.trace.peak import PhasePeak

SHOWN_OWNERS = 12


class Owner(NamedTuple):
    """Storages that are alike: made by the same op of the same part of every block."""

    num_bytes: int
    """Of all of them."""
    how_many: int
    """Storages."""
    purpose: str
    """What they are for."""
    module: str
    """Path of the module or parameter, `*` for the number of a block."""
    op: str
    """What made them."""
    dtype: str
    """Of their elements."""
    shape: tuple[int, ...]
    """Of each."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "bytes": self.num_bytes,
            "count": self.how_many,
            "purpose": self.purpose,
            "module": self.module,
            "op": self.op,
            "dtype": self.dtype,
            "shape": list(self.shape),
        }


class Memory:
    """Peaks and owners of one trace. `rounded`: every storage counts in multiples of 512 bytes."""

    def __init__(self, trace: Trace, parts: Parts, rounded: bool) -> None:
        self.trace = trace
        self.parts = parts
        self.rounded = rounded
        self.phases = phase_peaks(trace, rounded)
        self.unrounded = phase_peaks(trace) if rounded else self.phases
        self.highest = max(reversed(self.phases), key=lambda p: _int(p.peak))
        """The phase with the highest peak; the last of them where several are as high, which is the steady state."""
        assert self.highest.moment is not None
        self._live = live_counts(trace, self.highest.moment)

    @property
    def peak(self) -> int:
        """The most bytes that are ever live."""
        return _int(self.highest.peak)

    @property
    def unrounded_peak(self) -> int:
        """The same, as sums of storage sizes."""
        return max(_int(p.peak) for p in self.unrounded)

    def peak_of(self, keep: Callable[[PhasePeak], bool]) -> int:
        """The highest peak of some of the phases, 0 where there is none."""
        return max((_int(p.peak) for p in self.phases if keep(p)), default=0)

    def size(self, allocation: Allocation) -> int:
        """The bytes that an allocation counts for."""
        num_bytes = _int(allocation.num_bytes)
        return (num_bytes + 511) // 512 * 512 if self.rounded else num_bytes

    @property
    def cause(self) -> Allocation | None:
        """What was being allocated when the peak was reached."""
        event = self.trace.events[self._moment.event] if self._moment.event >= 0 else 0
        return self.trace.allocations[event - 1] if event > 0 else None

    @property
    def _moment(self) -> Moment:
        assert self.highest.moment is not None
        return self.highest.moment

    def by_purpose(self) -> dict[str, int]:
        """The bytes at the peak by purpose, largest first."""
        return self._sum(lambda a: a.purpose)

    def by_component(self) -> dict[str, int]:
        """The bytes at the peak by component, largest first."""
        return self._sum(self.parts.component)

    def live(self) -> Iterator[tuple[Allocation, int]]:
        """What is live at the peak, with the bytes of all its copies."""
        for index, count in self._live.items():
            allocation = self.trace.allocations[index]
            yield allocation, self.size(allocation) * count

    def live_at_end(self) -> Iterator[tuple[Allocation, int]]:
        """What is live when the run is over, with how many times."""
        last = len(self.trace.spans) - 1
        end = Moment(last, self.trace.spans[last].count - 1, len(self.trace.events) - 1)
        for index, count in live_counts(self.trace, end).items():
            yield self.trace.allocations[index], count

    def _sum(self, key: Callable[[Allocation], str]) -> dict[str, int]:
        totals: dict[str, int] = {}
        for allocation, size in self.live():
            name = key(allocation)
            totals[name] = totals.get(name, 0) + size
        return {k: v for k, v in sorted(totals.items(), key=lambda item: -item[1]) if v}

    def owners(self, limit: int | None = SHOWN_OWNERS) -> list[Owner]:
        """Who owns the most at the peak, largest first; all of them where there is no limit."""
        totals: dict[tuple[Any, ...], list[int]] = {}
        for index, count in self._live.items():
            a = self.trace.allocations[index]
            total = totals.setdefault((a.purpose, pattern(a.path), a.op, a.dtype, a.shape), [0, 0])
            total[0] += self.size(a) * count
            total[1] += count
        ranked = sorted(totals.items(), key=lambda item: -item[1][0])[:limit]
        return [Owner(total[0], total[1], *key) for key, total in ranked if total[0]]

    def as_dict(self) -> dict[str, Any]:
        """The peak, for JSON."""
        cause = self.cause
        return {
            "bytes": self.peak,
            "unrounded_bytes": self.unrounded_peak,
            "basis": "modelled" if self.rounded else "exact",
            "round": self.highest.mark.round,
            "phase": self.highest.mark.phase,
            "op": cause and cause.op,
            "module": cause and cause.path,
            "by_purpose": self.by_purpose(),
            "by_component": self.by_component(),
            "owners": [owner.as_dict() for owner in self.owners()],
        }

    def phases_as_dicts(self) -> list[dict[str, Any]]:
        """Every phase, for JSON."""
        return [
            {
                "round": p.mark.round,
                "phase": p.mark.phase,
                "before_bytes": _int(p.before),
                "peak_bytes": _int(p.peak),
                "after_bytes": _int(p.after),
                "unrounded_peak_bytes": _int(u.peak),
            }
            for p, u in zip(self.phases, self.unrounded, strict=True)
        ]


def _int(size: Any) -> int:
    """A size of a single setting. Sweeps are not reported: they have no single peak."""
    assert isinstance(size, int)
    return size
