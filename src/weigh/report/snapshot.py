"""A memory snapshot, summed up: its peak, who owned it, what the allocator kept beside it, and what was refused."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from weigh.records import dataclass
from weigh.report.header import header
from weigh.report.text import PLAIN, Style, exactly, share, table
from weigh.trace.events import Allocation
from weigh.trace.peak import breakdown, live_counts, phase_peaks
from weigh.trace.snapshot import BEFORE, Snapshot
from weigh.units import format_bytes

OWNERS = 20


@dataclass(frozen=True, eq=False, repr=False)
class SnapshotReport:
    """One device's snapshot, weighed."""

    where: str
    """The file."""
    snapshot: Snapshot
    predicted: Mapping[str, int] | None = None
    """What weigh predicts for the run, where it was told which: "allocated" and "reserved", in bytes."""

    @cached_property
    def _highest(self) -> Any:
        return max(phase_peaks(self.snapshot.trace), key=lambda p: int(p.peak))  # type: ignore[arg-type]

    @property
    def peak(self) -> int:
        """The most bytes allocated at any time of the recording."""
        return int(self._highest.peak)

    @property
    def before(self) -> int:
        """Bytes that were there when the recording began."""
        return int(phase_peaks(self.snapshot.trace)[0].after)  # type: ignore[arg-type]

    @property
    def idle(self) -> int:
        """Bytes reserved beyond the peak, at the most that was reserved."""
        return max(self.snapshot.max_reserved - self.peak, 0)

    @cached_property
    def owners(self) -> dict[str, int]:
        """The bytes at the peak by stack frame, the largest first."""

        def owner(allocation: Allocation) -> str:
            return allocation.path

        return {k: int(v) for k, v in breakdown(self.snapshot.trace, self._highest.moment, owner).items()}  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, Any]:
        """For JSON, by `docs/schema/snapshot.json`."""
        s = self.snapshot
        return {
            **header("snapshot"),
            "file": self.where,
            "device": s.device,
            "events": len(s.trace.events),
            "peak": {
                "bytes": self.peak,
                "event": int(self._highest.moment.event),
                "live_allocations": sum(live_counts(s.trace, self._highest.moment).values()),
                "owners": [{"owner": k, "bytes": v} for k, v in self.owners.items()],
            },
            "before_recording_bytes": self.before,
            "reserved": {"at_end_bytes": s.reserved, "max_bytes": s.max_reserved, "idle_bytes": self.idle},
            "out_of_memory": [
                {"event": o.event, "bytes": o.num_bytes, "device_free_bytes": o.device_free, "owner": o.owner}
                for o in s.out_of_memory
            ],
            "predicted": None if self.predicted is None else dict(self.predicted),
        }

    def text(self, style: Style = PLAIN) -> str:
        """For a terminal."""
        s = self.snapshot
        lines = [
            style.bold(f"Device {s.device} of {self.where} had at most {exactly(self.peak)} allocated"),
            "",
            *table(
                [
                    ("events", f"{len(s.trace.events):,}"),
                    ("there before the recording", format_bytes(self.before)),
                    ("reserved, at most", format_bytes(s.max_reserved)),
                    ("reserved, at the end", format_bytes(s.reserved)),
                    ("of the most reserved, not in use", f"{format_bytes(self.idle)}, {self._idle_share()}"),
                ],
                "<>",
            ),
        ]
        lines += ["", "At the peak, by the innermost frame that is not PyTorch's:"]
        shown = list(self.owners.items())[:OWNERS]
        lines += table([(name, format_bytes(size), share(size, self.peak)) for name, size in shown], "<>>")
        if len(self.owners) > OWNERS:
            rest = sum(list(self.owners.values())[OWNERS:])
            lines.append(f"  and {len(self.owners) - OWNERS} more with {format_bytes(rest)}")
        if BEFORE in self.owners:
            lines.append(f"  ({BEFORE}: allocated without a stack; start recording before the model is made)")
        for refused in s.out_of_memory:
            left = "" if refused.device_free is None else f", {format_bytes(refused.device_free)} were left"
            lines += ["", f"Out of memory: {refused.owner} asked for {format_bytes(refused.num_bytes)}{left}."]
        if self.predicted is not None:
            lines += ["", "Beside weigh's prediction:", *table(self._beside(), "<>>>")]
        return "\n".join(lines)

    def _idle_share(self) -> str:
        return share(self.idle, self.snapshot.max_reserved) if self.snapshot.max_reserved else "0 %"

    def _beside(self) -> list[tuple[str, ...]]:
        assert self.predicted is not None
        measured = {"allocated": self.peak, "reserved": self.snapshot.max_reserved}
        rows: list[tuple[str, ...]] = [("", "measured", "predicted", "difference")]
        for name, found in measured.items():
            expected = self.predicted[name]
            error = f"{(expected - found) / found * 100:+.2f} %" if found else "-"
            rows.append((name, format_bytes(found), format_bytes(expected), error))
        return rows

    def __str__(self) -> str:
        return self.text()
