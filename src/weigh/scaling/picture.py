"""Iso-FLOP and iso-loss curves of a law, as SVG in the style of the other pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from math import ceil, floor, log10
from typing import NamedTuple

from weigh.report.svg import style_sheet
from weigh.scaling.laws import Optimum, Parametric
from weigh.scaling.report import counted

KINDS = ("iso-flop", "iso-loss")
COLOURS = ("#56b4e9", "#0072b2", "#009e73", "#e69f00", "#d55e00", "#cc79a7", "#999999")
"""Okabe and Ito's, one a curve."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 150, 76, 62
_STEPS = 160


class Point(NamedTuple):
    """A place in a picture, in its units."""

    x: float
    y: float


def draw(
    law: Parametric, around: Optimum, kind: str, marked: str | None = None, width: int = 900, height: int = 480
) -> str:
    """The picture, as the text of an SVG file; `marked` names the point `around` where it is somebody's.

    "iso-flop": the loss over the size, a curve for every budget. "iso-loss": the size over the budget, a curve for
    every loss, and the best sizes.
    """
    plot = (_IsoFlop if kind == "iso-flop" else _IsoLoss)(law, around, marked, width, height)
    body = "\n".join((*plot.frame(), *plot.grid(), *plot.curves(), *plot.mark()))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'class="weigh" role="img" aria-label="{escape(plot.title)}">\n{style_sheet()}\n{body}\n</svg>\n'
    )


class _Plot:
    """Axes, of which x is logarithmic, and lines on them."""

    title, subtitle, x_label, y_label = "", "", "", ""
    y_is_logarithmic = False

    def __init__(self, law: Parametric, around: Optimum, marked: str | None, width: int, height: int) -> None:
        self.law, self.around, self.marked, self.width, self.height = law, around, marked, width, height
        self.right, self.base = width - _RIGHT, height - _BOTTOM
        self.lines = list(self.all_lines())
        xs = [p.x for _, points in self.lines for p in points]
        ys = [p.y for _, points in self.lines for p in points]
        self.x_range = (log10(min(xs)), log10(max(xs)))
        low, high = (log10(min(ys)), log10(max(ys))) if self.y_is_logarithmic else (min(ys), max(ys))
        self.y_range = (low - 0.04 * (high - low), high + 0.04 * (high - low))

    def all_lines(self) -> Iterator[tuple[str, list[Point]]]:
        """Every curve and its label."""
        raise NotImplementedError

    def best(self) -> list[Point]:
        """The line of optima."""
        raise NotImplementedError

    def place(self) -> Point:
        """Where `around` lies."""
        raise NotImplementedError

    def x(self, value: float) -> float:
        low, high = self.x_range
        return _LEFT + (self.right - _LEFT) * (log10(value) - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.y_range
        height = log10(value) if self.y_is_logarithmic else value
        return self.base - (self.base - _TOP) * (height - low) / (high - low)

    def frame(self) -> Iterator[str]:
        yield f'<rect class="page" width="{self.width}" height="{self.height}" rx="6"/>'
        yield f'<text class="title" x="{_LEFT}" y="28">{escape(self.title)}</text>'
        yield f'<text class="quiet" x="{_LEFT}" y="47">{escape(self.subtitle)}</text>'
        yield f'<text class="quiet" x="{_LEFT - 62}" y="{_TOP - 10}">{escape(self.y_label)}</text>'
        yield f'<text class="quiet end" x="{self.right}" y="{self.base + 40}">{escape(self.x_label)} →</text>'

    def grid(self) -> Iterator[str]:
        for power in range(ceil(self.x_range[0]), floor(self.x_range[1]) + 1):
            at = self.x(10.0**power)
            yield f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{self.base}"/>'
            yield f'<text class="quiet middle" x="{at:.1f}" y="{self.base + 18}">{self.x_tick(10.0**power)}</text>'
        for value in self.y_ticks():
            at = self.y(value)
            yield f'<line class="grid" x1="{_LEFT}" x2="{self.right}" y1="{at:.1f}" y2="{at:.1f}"/>'
            yield f'<text class="quiet end" x="{_LEFT - 8}" y="{at + 4:.1f}">{self.y_tick(value)}</text>'
        yield f'<line class="axis" x1="{_LEFT}" x2="{self.right}" y1="{self.base}" y2="{self.base}"/>'

    def x_tick(self, value: float) -> str:
        return _power(value)

    def y_tick(self, value: float) -> str:
        return f"{value:.4g}"

    def y_ticks(self) -> list[float]:
        low, high = self.y_range
        if self.y_is_logarithmic:
            return [10.0**power for power in range(ceil(low), floor(high) + 1)]
        step = next(b * 10.0**p for p in range(-4, 3) for b in (1, 2, 5) if (high - low) / (b * 10.0**p) <= 8)
        return [step * i for i in range(ceil(low / step), floor(high / step) + 1)]

    def curves(self) -> Iterator[str]:
        taken: list[float] = []
        for number, (label, points) in enumerate(self.lines):
            colour = COLOURS[number % len(COLOURS)]
            name = f"<title>{escape(label)}</title>"
            yield f'<path fill="none" stroke="{colour}" stroke-width="2" d="{self._path(points)}">{name}</path>'
            last = max(points, key=lambda p: p.x)
            at = self.y(last.y) + 4
            while any(abs(at - other) < 13 for other in taken):
                at += 3
            taken.append(at)
            yield f'<text x="{self.x(last.x) + 6:.1f}" y="{at:.1f}">{escape(label)}</text>'
        yield f'<path class="peak" d="{self._path(self.best())}"><title>the best size</title></path>'
        for point in self.best() if len(self.best()) < 20 else ():
            yield f'<circle class="dot" cx="{self.x(point.x):.1f}" cy="{self.y(point.y):.1f}" r="3"/>'

    def _path(self, points: Sequence[Point]) -> str:
        return "M" + "L".join(f"{self.x(p.x):.1f},{self.y(p.y):.1f}" for p in points)

    def mark(self) -> Iterator[str]:
        place = self.place()
        x, y = self.x(place.x), self.y(place.y)
        said = self.marked or f"{counted(self.around.parameters)} parameters, {counted(self.around.tokens)} tokens"
        side = "end" if x > _LEFT + 7.5 * len(said) else ""
        yield f'<circle fill="#d55e00" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
        yield f'<text class="strong {side}" x="{x + (-10 if side else 10):.1f}" y="{y + 19:.1f}">{escape(said)}</text>'


class _IsoFlop(_Plot):
    y_label = "loss, nats a token"
    x_label = "parameters"

    def __init__(self, law: Parametric, around: Optimum, marked: str | None, width: int, height: int) -> None:
        self.title = "Loss over size, for equal budgets"
        self.subtitle = f"{law.title} ({law.name}). Each curve spends the same FLOP; dashed: its best size"
        self.budgets = [around.flops * 10.0**power for power in (-2, -1, 0, 1, 2)]
        super().__init__(law, around, marked, width, height)

    def all_lines(self) -> Iterator[tuple[str, list[Point]]]:
        for flops in self.budgets:
            best = self.law.optimum(flops).parameters
            sizes = [best * 10 ** (-1.1 + 2.2 * i / _STEPS) for i in range(_STEPS + 1)]
            yield f"{_scientific(flops)} FLOP", [Point(n, self.law.loss(n, flops / 6 / n)) for n in sizes]

    def best(self) -> list[Point]:
        found = (self.law.optimum(flops) for flops in self.budgets)
        return [Point(best.parameters, self.law.loss(*best)) for best in found]

    def place(self) -> Point:
        return Point(self.around.parameters, self.law.loss(*self.around))

    def x_tick(self, value: float) -> str:
        return _short(value)


class _IsoLoss(_Plot):
    y_label = "parameters"
    x_label = "FLOP of training"
    y_is_logarithmic = True

    def __init__(self, law: Parametric, around: Optimum, marked: str | None, width: int, height: int) -> None:
        self.title = "Budget and size, for equal losses"
        self.subtitle = f"{law.title} ({law.name}). On each curve the loss is the same; dashed: the best size"
        super().__init__(law, around, marked, width, height)

    def all_lines(self) -> Iterator[tuple[str, list[Point]]]:
        for power in (-2, -1, 0, 1, 2):
            best = self.law.optimum(self.around.flops * 10.0**power)
            loss = self.law.loss(*best)
            points = []
            for i in range(_STEPS + 1):
                size = best.parameters * 10 ** (-1 + 2 * i / _STEPS)
                tokens = self.law.tokens_for(loss, size)
                if tokens is not None and tokens < 300 * best.tokens:
                    points.append(Point(6 * size * tokens, size))
            yield f"{loss:.3f} nats", points

    def best(self) -> list[Point]:
        low, high = (10**x for x in self.x_range)
        budgets = [low * (high / low) ** (i / 40) for i in range(41)]
        return [Point(flops, self.law.optimum(flops).parameters) for flops in budgets]

    def place(self) -> Point:
        return Point(self.around.flops, self.around.parameters)

    def y_tick(self, value: float) -> str:
        return _short(value)


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _power(value: float) -> str:
    """A power of ten.

    >>> _power(1e23)
    '10²³'
    """
    return f"10{str(round(log10(value))).translate(_SUPERSCRIPTS)}"


def _scientific(value: float) -> str:
    """A number with its power of ten.

    >>> _scientific(5.76e23)
    '5.76 x 10²³'
    """
    digits, _, power = f"{value:.3g}".replace("e+", "e").partition("e")
    return f"{digits} x 10{str(int(power)).translate(_SUPERSCRIPTS)}" if power else digits


def _short(value: float) -> str:
    """A count without decimals.

    >>> _short(1e8), _short(1e10)
    ('100 M', '10 B')
    """
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size and value < 1e16:
            return f"{value / size:.0f} {unit}"
    return f"{value:.0e}" if value >= 1e16 else f"{value:.0f}"
