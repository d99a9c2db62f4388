"""The level over a run, by purpose, in as many columns as a chart has: each column shows its highest moment."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from weigh.records import dataclass
from weigh.report.text import PLURAL
from weigh.trace.events import LOAD

if TYPE_CHECKING:
    from weigh.report.memory import Memory


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """A stretch of a run, sampled."""

    columns: list[dict[str, int]]
    """For every column the bytes by purpose at its highest moment."""
    phases: list[tuple[str, int]]
    """Every phase with the column in which it begins."""
    peak_column: int
    """Where the highest moment is."""
    num_events: int
    """Births and deaths in the whole stretch."""
    purposes: tuple[str, ...]
    """Those that occur, in the order in which charts stack them."""

    @property
    def totals(self) -> list[int]:
        """The level in every column."""
        return [sum(column.values()) for column in self.columns]


def sample(memory: Memory, width: int, round: int | None = None) -> Series:
    """The level over one round (None: over all), in at most `width` columns; loading is left out."""
    trace = memory.trace
    sizes = [memory.size(a) for a in trace.allocations]
    level = dict.fromkeys(PLURAL, 0)
    changes: list[tuple[str, int]] = []
    starts: list[tuple[str, int]] = []
    for mark, numbers in trace.sections():
        shown = mark.phase != LOAD and (round is None or mark.round == round)
        if shown and (not starts or starts[-1][0] != mark.phase):
            starts.append((mark.phase, len(changes)))
        for span in (trace.spans[n] for n in numbers):
            here = [
                (trace.allocations[abs(e) - 1].purpose, sizes[e - 1] if e > 0 else -sizes[-e - 1])
                for e in trace.events[span.start : span.stop]
            ]
            if shown:
                changes += here * span.count
            elif not changes:
                for purpose, change in here:
                    level[purpose] += change * span.count
    totals = list(accumulate((change for _, change in changes), initial=sum(level.values())))[1:]
    count = min(width, len(changes))
    bounds = [column * len(changes) // count for column in range(count + 1)] if count else []
    tops = [max(range(a, b), key=totals.__getitem__) for a, b in pairwise(bounds)]
    columns: list[dict[str, int]] = []
    at = 0
    for top in tops:
        for purpose, change in changes[at : top + 1]:
            level[purpose] += change
        at = top + 1
        columns.append({purpose: size for purpose, size in level.items() if size})
    peak = max(range(count), key=lambda column: totals[tops[column]]) if count else 0
    phases = [(phase, min(start * count // max(len(changes), 1), count - 1)) for phase, start in starts]
    used = tuple(p for p in PLURAL if any(p in column for column in columns))
    return Series(columns, phases, peak, len(changes), used)
