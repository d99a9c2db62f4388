"""What a comparison with references is made of: lines, and what they come to."""

from __future__ import annotations

from typing import Any

from weigh.records import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """One metric of one row."""

    id: str
    metric: str
    reference: int | None
    predicted: int | None
    reason: str | None
    """Why there is no prediction; None where there is one."""
    groups: tuple[str, ...] = ()
    """What the row is summed up under: its family and its settings."""
    rounding: float = 0.0
    """How far the reference may be off because it was printed with few digits."""

    @property
    def relative_error(self) -> float | None:
        """(predicted - reference) / reference, against one byte where the reference is none; None without either."""
        if self.predicted is None or self.reference is None:
            return None
        return (self.predicted - self.reference) / max(abs(self.reference), 1)

    @property
    def rounds_to_reference(self) -> bool:
        """The prediction is the reference, as far as the reference was printed."""
        if self.predicted is None or self.reference is None:
            return False
        return abs(self.predicted - self.reference) <= self.rounding


@dataclass(frozen=True, slots=True)
class Validation:
    """Every line of a file, and what they come to."""

    lines: tuple[Line, ...]

    def summary(self) -> dict[str, Any]:
        """Counts, median, 90th percentile and worst of the absolute relative errors: over all, and by group."""
        groups: dict[str, list[Line]] = {}
        for line in self.lines:
            for group in line.groups:
                groups.setdefault(group, []).append(line)
        return {"all": _figures(list(self.lines)), "groups": {g: _figures(groups[g]) for g in sorted(groups)}}

    def as_dict(self) -> dict[str, Any]:
        """The published JSON: `rows` and `summary`."""
        rows = [
            {
                "id": line.id,
                "metric": line.metric,
                "reference": line.reference,
                "predicted": line.predicted,
                "relative_error": line.relative_error,
                "rounding": line.rounding,
                "reason": line.reason,
            }
            for line in self.lines
        ]
        return {"rows": rows, "summary": self.summary()}

    def text(self) -> str:
        """A table of the lines, then the summary."""
        row = max([3, *(len(line.id) for line in self.lines)])
        metric = max([6, *(len(line.metric) for line in self.lines)])
        out = [f"{'row':{row}} {'metric':{metric}} {'reference':>18} {'predicted':>18} {'error':>10}"]
        out += [_text_of(line, row, metric) for line in self.lines]
        summary = self.summary()
        name_width = max([3, *(len(name) for name in summary["groups"])])
        heads = f"{'values':>8} {'exact':>8} {'rounded':>8} {'none':>6} {'median':>10} {'90 %':>10} {'worst':>10}"
        out += ["", f"{'':{name_width}} {heads}"]
        for name, figures in [("all", summary["all"]), *summary["groups"].items()]:
            cells = [_percent(figures[k]) for k in ("median", "percentile_90", "worst")]
            counts = "".join(f" {figures[k]:>8}" for k in ("values", "exact", "rounded"))
            counts += f" {figures['not_predicted']:>6}"
            out.append(f"{name:{name_width}}{counts} {cells[0]:>10} {cells[1]:>10} {cells[2]:>10}")
        return "\n".join(out)


def _text_of(line: Line, row: int, metric: int) -> str:
    reference = "-" if line.reference is None else f"{line.reference:,}"
    start = f"{line.id:{row}} {line.metric:{metric}} {reference:>18}"
    if line.predicted is None:
        return f"{start} {'-':>18}   {line.reason}"
    return f"{start} {line.predicted:>18,} {_percent(line.relative_error):>10}"


def _percent(error: float | None) -> str:
    if error is None:
        return "-"
    return "0" if not error else f"{error * 100:+.4f} %"


def _figures(lines: list[Line]) -> dict[str, Any]:
    errors = sorted(abs(e) for e in (line.relative_error for line in lines) if e is not None)
    count = len(errors)
    return {
        "values": len(lines),
        "predicted": count,
        "not_predicted": len(lines) - count,
        "exact": sum(1 for e in errors if not e),
        "rounded": sum(line.rounds_to_reference for line in lines),
        "median": errors[(count - 1) // 2] if errors else None,
        "percentile_90": errors[max(0, -(-9 * count // 10) - 1)] if errors else None,
        "worst": errors[-1] if errors else None,
    }
