"""The level over a run as a picture: stacked by purpose, phases shaded, the peak annotated.

One file without outside references; it follows the reader's light or dark scheme where the viewer tells it.
"""

from __future__ import annotations

from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING

from weigh.report.text import PLURAL
from weigh.trace.events import (
    ACTIVATION,
    BUFFER,
    COMMUNICATION,
    GRADIENT,
    INPUT,
    KV_CACHE,
    OPTIMIZER_STATE,
    RECURRENT_STATE,
    TEMPORARY,
    UNATTRIBUTED,
    UNSHARDED,
    WEIGHT,
    WORKSPACE,
)
from weigh.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from weigh.report.run import RunReport
    from weigh.report.series import Series

COLOURS = {
    WEIGHT: "#0072b2",
    BUFFER: "#999999",
    INPUT: "#bbbbbb",
    OPTIMIZER_STATE: "#cc79a7",
    GRADIENT: "#e69f00",
    KV_CACHE: "#56b4e9",
    RECURRENT_STATE: "#88ccee",
    ACTIVATION: "#009e73",
    UNSHARDED: "#66c2a5",
    COMMUNICATION: "#f0e442",
    WORKSPACE: "#bbbbbb",
    UNATTRIBUTED: "#888888",
    TEMPORARY: "#d55e00",
}
"""Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), told apart by the colour-blind."""

_FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
_LIGHT = {
    "text": f"font-family: {_FONT}; font-size: 12px; fill: #1f2328",
    ".title": "font-size: 16px; font-weight: 600",
    ".strong": "font-weight: 600",
    ".quiet": "fill: #57606a",
    ".end": "text-anchor: end",
    ".middle": "text-anchor: middle",
    ".page": "fill: #ffffff",
    ".band": "fill: #f3f4f6",
    ".grid": "stroke: #d7dbe0; stroke-width: 1",
    ".axis": "stroke: #6e7781; stroke-width: 1",
    ".peak": "stroke: #1f2328; stroke-width: 1; stroke-dasharray: 3 3; fill: none",
    ".dot": "fill: #1f2328",
    ".limit": "stroke: #cf222e; stroke-width: 1.5; stroke-dasharray: 6 4",
}
_DARK = {
    "text": "fill: #e6edf3",
    ".quiet": "fill: #8b949e",
    ".page": "fill: #0d1117",
    ".band": "fill: #161b22",
    ".grid": "stroke: #30363d",
    ".axis": "stroke: #8b949e",
    ".peak": "stroke: #e6edf3",
    ".dot": "fill: #e6edf3",
    ".limit": "stroke: #ff7b72",
}


def style_sheet() -> str:
    """Every rule says `.weigh` first: in a notebook the picture shares its page with others."""
    light, dark = ("\n".join(f".weigh {s} {{ {r} }}" for s, r in rules.items()) for rules in (_LIGHT, _DARK))
    return f"<style>\n{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n</style>"


_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 24, 84, 84


def draw(report: RunReport, width: int = 900, height: int = 440) -> str:
    """The picture, as the text of an SVG file."""
    series = report.series(360)
    plot = _Plot(series, report, width, height)
    body = "\n".join(
        (*plot.frame(), *plot.bands(), *plot.grid(), *plot.areas(), *plot.limit(), *plot.peak(), *plot.legend())
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'class="weigh" role="img" aria-label="{escape(_title(report))}">\n{style_sheet()}\n{body}\n</svg>\n'
    )


def _title(report: RunReport) -> str:
    return f"{report.doing} {report.source.name}: {format_bytes(report.peak)} at the peak"


class _Plot:
    """Where things stand on the page."""

    def __init__(self, series: Series, report: RunReport, width: int, height: int) -> None:
        self.series, self.report, self.width, self.height = series, report, width, height
        self.totals = series.totals
        self.right = width - _RIGHT
        self.base = height - _BOTTOM
        self.capacity = report.fit.capacity if report.fit is not None else None
        highest = max(self.totals)
        if self.capacity is not None and self.capacity <= 2 * highest:
            highest = max(highest, self.capacity)
        else:
            self.capacity = None
        self.top, self.step, self.unit = _scale(highest)

    def x(self, column: float) -> float:
        return _LEFT + (self.right - _LEFT) * column / len(self.totals)

    def y(self, num_bytes: float) -> float:
        return self.base - (self.base - _TOP) * num_bytes / self.top

    def frame(self) -> Iterator[str]:
        yield f'<rect class="page" width="{self.width}" height="{self.height}" rx="6"/>'
        yield f'<text class="title" x="{_LEFT}" y="28">{escape(_title(self.report))}</text>'
        yield f'<text class="quiet" x="{_LEFT}" y="47">{escape(self.report.summary())}</text>'

    def bands(self) -> Iterator[str]:
        starts = [*(start for _, start in self.series.phases), len(self.totals)]
        for number, ((phase, start), stop) in enumerate(zip(self.series.phases, starts[1:], strict=True)):
            left, right = self.x(start), self.x(stop)
            if number % 2 == 0:
                room = f'width="{right - left:.1f}" height="{self.base - _TOP}"'
                yield f'<rect class="band" x="{left:.1f}" y="{_TOP}" {room}/>'
            if right - left > 7 * len(phase):
                yield f'<text class="quiet middle" x="{(left + right) / 2:.1f}" y="{self.base + 17}">{phase}</text>'

    def grid(self) -> Iterator[str]:
        for tick in range(round(self.top / self.step) + 1):
            at = self.y(tick * self.step)
            number = f"{tick * self.step / self.unit[1]:.10g}"
            yield f'<line class="grid" x1="{_LEFT}" x2="{self.right}" y1="{at:.1f}" y2="{at:.1f}"/>'
            yield f'<text class="end quiet" x="{_LEFT - 8}" y="{at + 4:.1f}">{number}</text>'
        yield f'<text class="end quiet" x="{_LEFT - 8}" y="{_TOP - 14}">{self.unit[0]}</text>'
        events = f"{self.series.num_events:,} allocations and frees{self.report.chart_stretch()}, in order"
        yield f'<text class="quiet end" x="{self.right}" y="{self.base + 34}">{events} →</text>'

    def areas(self) -> Iterator[str]:
        below = [0] * len(self.totals)
        for purpose in self.series.purposes:
            above = [low + column.get(purpose, 0) for low, column in zip(below, self.series.columns, strict=True)]
            if any(high > low for low, high in zip(below, above, strict=True)):
                outline = f"M{self._steps(above)}L{self._steps(below, back=True)}Z"
                name = escape(PLURAL[purpose])
                yield f'<path fill="{COLOURS[purpose]}" d="{outline}"><title>{name}</title></path>'
            below = above
        yield f'<line class="axis" x1="{_LEFT}" x2="{self.right}" y1="{self.base}" y2="{self.base}"/>'

    def _steps(self, levels: list[int], back: bool = False) -> str:
        """The corners of a staircase, from left to right or from right to left, runs of equal height as one tread."""
        edges = [0, *(i for i in range(1, len(levels)) if levels[i] != levels[i - 1]), len(levels)]
        corners = []
        for left, right in pairwise(edges):
            height = f"{self.y(levels[left]):.1f}"
            corners += [f"{self.x(left):.1f},{height}", f"{self.x(right):.1f},{height}"]
        return "L".join(reversed(corners) if back else corners)

    def limit(self) -> Iterator[str]:
        if self.capacity is not None and self.report.device is not None:
            at = self.y(self.capacity)
            name = f"{self.report.device.marketing_name}: {format_bytes(self.capacity)}"
            yield f'<line class="limit" x1="{_LEFT}" x2="{self.right}" y1="{at:.1f}" y2="{at:.1f}"/>'
            yield f'<text x="{_LEFT + 6}" y="{at + 15:.1f}">{escape(name)}</text>'

    def peak(self) -> Iterator[str]:
        column = self.series.peak_column
        at, level = self.x(column + 0.5), self.y(self.totals[column])
        cause = self.report.memory.cause
        label = f"{format_bytes(self.totals[column])}, at {cause.op}" if cause else format_bytes(self.totals[column])
        side = "end" if at > (_LEFT + self.right) / 2 else ""
        shift = -8 if side else 8
        yield f'<line class="peak" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP - 8}" y2="{level:.1f}"/>'
        yield f'<circle class="dot" cx="{at:.1f}" cy="{level:.1f}" r="3.5"/>'
        yield f'<text class="strong {side}" x="{at + shift:.1f}" y="{_TOP - 12}">{escape(label)}</text>'

    def legend(self) -> Iterator[str]:
        amounts = self.report.memory.by_purpose()
        visible = [p for p in self.series.purposes if max(c.get(p, 0) for c in self.series.columns) * 500 > self.top]
        yield f'<text class="quiet" x="{_LEFT}" y="{self.base + 38}">At the peak:</text>'
        x, y = float(_LEFT), self.base + 58
        for purpose in sorted(visible, key=lambda p: -amounts.get(p, 0)):
            label = f"{PLURAL[purpose]} {format_bytes(amounts[purpose]) if purpose in amounts else '0'}"
            room = 34 + 6.9 * len(label)
            if x + room > self.width:
                x, y = _LEFT, y + 17
            yield f'<rect fill="{COLOURS[purpose]}" x="{x:.0f}" y="{y - 10}" width="11" height="11" rx="2"/>'
            yield f'<text x="{x + 17:.0f}" y="{y}">{escape(label)}</text>'
            x += room


def _scale(highest: int) -> tuple[float, float, tuple[str, int]]:
    """The top of the axis, the distance of its ticks (four to eight of them), and the unit they are written in."""
    unit = format_bytes(highest).split()[1]
    size = 1 if unit == "B" else 1 << (10 * ("KiB", "MiB", "GiB", "TiB", "PiB").index(unit) + 10)
    whole = highest / size
    step = next(
        base * 10.0**power for power in range(-3, 5) for base in (1, 2, 2.5, 5) if whole / (base * 10.0**power) <= 8
    )
    return step * size * -(-whole // step), step * size, (unit, size)
