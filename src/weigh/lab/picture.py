"""Memory and losses of a run as SVG, in the style of the other pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from math import ceil, floor
from typing import TYPE_CHECKING

from weigh.lab.techniques import SCRATCH, SPREAD, STARTED
from weigh.lab.words import percent
from weigh.report.svg import COLOURS, style_sheet
from weigh.report.text import PLURAL
from weigh.trace.events import UNATTRIBUTED

if TYPE_CHECKING:
    from weigh.lab.report import LabReport, Line

MIB = 1 << 20
WIDTH = 960
_ROW, _BAR, _HEAD = 40, 13, 30
_LEFT, _RIGHT, _TOP = 150, 168, 92


def _svg(title: str, height: int, body: Iterator[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'class="weigh" role="img" aria-label="{escape(title)}">\n{style_sheet()}\n'
        f'<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _step(span: float, at_most: int) -> float:
    """The distance of ticks: the smallest round one that makes no more than so many of them.

    >>> _step(54, 6), _step(3.1, 8)
    (10.0, 0.5)
    """
    return next(b * 10.0**p for p in range(-3, 9) for b in (1, 2, 5) if span / (b * 10.0**p) <= at_most)


# -- memory ----------------------------------------------------------------------------------------
def memory(report: LabReport) -> str:
    """Two bars for each technique: what was predicted, and under it what was measured, by what it is for."""
    title = "Peak memory by technique: predicted above, measured below"
    groups = report.groups()
    height = _TOP + sum(_HEAD + _ROW * len(members) for members in groups.values()) + 60
    return _svg(title, height, _memory(report, title, height))


def _memory(report: LabReport, title: str, height: int) -> Iterator[str]:
    yield _text(24, 30, title, "title")
    yield _text(24, 49, f"{report.title()}; {report.bench.batch} x {report.bench.sequence} bytes a step", "quiet")
    yield from _legend(report)
    base = height - 48
    most = max((max(line.measured_peak, line.predicted_peak) for line in report.done()), default=MIB) / MIB
    step = _step(most, 6)
    top = step * ceil(most / step)
    scale = (WIDTH - _LEFT - _RIGHT) / top
    for tick in range(round(top / step) + 1):
        x = _LEFT + tick * step * scale
        yield _line("grid", x, _TOP, x, base)
        yield _text(x, base + 17, f"{tick * step:g}", "quiet middle")
    yield _text(_LEFT + top * scale, base + 35, "MiB at the peak, in one process →", "quiet end")
    y = float(_TOP)
    for group, members in report.groups().items():
        y += _HEAD
        yield _text(_LEFT + 6, y - 8, group, "quiet")
        for line in members:
            yield _text(_LEFT - 10, y + _BAR + 4, line.name, "end strong")
            yield from _bar(line.predicted, y, scale, f"{line.name}, predicted")
            yield from _bar(line.by_purpose(), y + _BAR + 2, scale, f"{line.name}, measured")
            x = _LEFT + line.measured_peak / MIB * scale
            yield _line("axis", x, y + _BAR, x, y + 2 * _BAR + 4)
            longer = max(line.predicted_peak, line.measured_peak) / MIB * scale
            said = f"{line.measured_peak / MIB:.2f} MiB, {percent(line.error)}"
            yield _text(_LEFT + longer + 8, y + _BAR + 4, said, "quiet")
            y += _ROW
    yield _line("axis", _LEFT, _TOP, _LEFT, base)


def _bar(purposes: Mapping[str, int], y: float, scale: float, label: str) -> Iterator[str]:
    x = float(_LEFT)
    for purpose in PLURAL:
        size = purposes.get(purpose, 0)
        if size:
            wide = size / MIB * scale
            said = f"{label}: {PLURAL[purpose]} {size / MIB:.2f} MiB"
            yield (
                f'<rect fill="{COLOURS[purpose]}" x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{_BAR}">'
                f"<title>{escape(said)}</title></rect>"
            )
            x += wide


def _legend(report: LabReport) -> Iterator[str]:
    least = max((line.measured_peak for line in report.done()), default=1) / 300
    shown = [
        p
        for p in PLURAL
        if any(max(line.predicted.get(p, 0), line.by_purpose().get(p, 0)) > least for line in report.done())
    ]
    x = 24.0
    for purpose in shown:
        name = "inside of kernels" if purpose == UNATTRIBUTED else PLURAL[purpose]
        yield f'<rect fill="{COLOURS[purpose]}" x="{x:.0f}" y="66" width="11" height="11" rx="2"/>'
        yield _text(x + 17, 76, name)
        x += 38 + 6.6 * len(name)


# -- losses ----------------------------------------------------------------------------------------
_LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")
"""Okabe and Ito's, one a curve."""
_SAME = 0.01
"""Nats a byte; curves that are nowhere further apart are drawn as one."""
_PANEL = 330
_FIRST, _GAP = 84, 56


def losses(report: LabReport) -> str:
    """The loss on held-out text as training goes on: from nothing, and on from what fp32 ended with."""
    title = "Loss on text that no training saw"
    panels = [
        (SCRATCH, 1, [x for x in report.done() if x.technique.group in (SCRATCH, SPREAD)]),
        (STARTED, 0, [x for x in report.done() if x.technique.group == STARTED]),
    ]
    shown = [_Panel(*panel, report.bench.steps) for panel in panels if panel[-1]]
    height = _FIRST + len(shown) * (_PANEL + _GAP) + 10
    return _svg(title, height, _losses(report, title, shown))


def _losses(report: LabReport, title: str, panels: list[_Panel]) -> Iterator[str]:
    yield _text(24, 30, title, "title")
    yield _text(24, 49, f"{report.title()}; curves that lie on each other are drawn as one", "quiet")
    for number, panel in enumerate(panels):
        yield from panel.draw(_FIRST + number * (_PANEL + _GAP))


class _Panel:
    """Axes, and a curve for every bundle of lines, from its `begin`th point on."""

    def __init__(self, name: str, begin: int, lines: list[Line], steps: int) -> None:
        self.name, self.begin, self.steps = name, begin, steps
        self.top, self.base = 0.0, 0.0
        self.left, self.right = 64, 560
        self.bundles = bundles(lines)
        shown = [loss for line in lines for _, loss in line.held_out[begin:]]
        highest, lowest = max(shown), min(shown)
        self.step = _step(max(highest - lowest, 0.01), 8)
        self.low, self.high = self.step * floor(lowest / self.step), self.step * ceil(highest / self.step)

    def x(self, step: float) -> float:
        return self.left + (self.right - self.left) * step / self.steps

    def y(self, loss: float) -> float:
        return self.base - (self.base - self.top) * (loss - self.low) / (self.high - self.low)

    def draw(self, top: float) -> Iterator[str]:
        self.top, self.base = top + 22, top + _PANEL
        before = "" if not self.begin else f" (before the first step it was {self.bundles[0][0].before:.2f})"
        yield _text(24, self.top - 12, f"{self.name}: nats a byte{before}", "strong")
        for tick in range(round((self.high - self.low) / self.step) + 1):
            loss = self.low + tick * self.step
            yield _line("grid", self.left, self.y(loss), self.right, self.y(loss))
            yield _text(self.left - 8, self.y(loss) + 4, f"{loss:.4g}", "quiet end")
        apart = _step(self.steps, 8)
        for number in range(floor(self.steps / apart) + 1):
            yield _text(self.x(number * apart), self.base + 17, f"{number * apart:g}", "quiet middle")
        yield _text(self.right, self.base + 34, "steps →", "quiet end")
        yield _line("axis", self.left, self.base, self.right, self.base)
        yield from self._curves()

    def _curves(self) -> Iterator[str]:
        below = self.top - 14.0
        for number, bundle in enumerate(sorted(self.bundles, key=lambda b: -b[0].loss)):
            colour = _LINES[number % len(_LINES)]
            dashes = ' stroke-dasharray="6 4"' if number >= len(_LINES) else ""
            points = [(self.x(step), self.y(loss)) for step, loss in bundle[0].held_out[self.begin :]]
            path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)
            names = ", ".join(line.name for line in bundle)
            yield (
                f'<path fill="none" stroke="{colour}" stroke-width="2.2"{dashes} d="{path}">'
                f"<title>{escape(names)}</title></path>"
            )
            for x, y in points:
                yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"/>'
            at = max(points[-1][1] + 4, below + 14)
            yield (
                f'<path fill="none" stroke="{colour}" stroke-width="1" '
                f'd="M{points[-1][0]:.1f},{points[-1][1]:.1f}L{self.right + 22},{at - 4:.1f}"/>'
            )
            for part, words in enumerate(_wrapped(f"{bundle[0].loss:.3f}  {names}", 56)):
                yield _text(self.right + 26, at + 14 * part, words)
                below = at + 14 * part


def bundles(lines: list[Line]) -> list[list[Line]]:
    """Lines that take the same way, together; the first that came gives the way."""
    found: list[list[Line]] = []
    for line in lines:
        for bundle in found:
            if _together(line, bundle[0]):
                bundle.append(line)
                break
        else:
            found.append([line])
    return found


def _together(a: Line, b: Line) -> bool:
    return len(a.held_out) == len(b.held_out) and all(
        abs(x - y) <= _SAME for (_, x), (_, y) in zip(a.held_out, b.held_out, strict=True)
    )


def _wrapped(words: str, width: int) -> list[str]:
    from weigh.report.text import wrap

    return wrap(words, width)
