"""What the CUDA caching allocator has reserved, as a picture: every byte at one scale, coloured by what it is for.

The segments follow each other from left to right and row by row, like words in a text, the large ones first, those of a
pool in the order in which they were reserved. A thin line begins a segment; hatched is what is reserved and free. One
file without outside references; it follows the reader's light or dark scheme where the viewer tells it.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import groupby

from weigh.report.svg import COLOURS
from weigh.report.text import PLURAL
from weigh.trace.allocator import SMALL_SEGMENT
from weigh.trace.replay import Replay
from weigh.units import format_bytes

FREE = "free"

_LEFT, _RIGHT, _TOP = 24, 24, 66
_ROW, _GAP = 15, 4
_CELL = 0.5
"""Pixels; what is narrower shows as the purpose that has most of them."""

_FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
_LIGHT = {
    "text": f"font-family: {_FONT}; font-size: 12px; fill: #1f2328",
    ".title": "font-size: 16px; font-weight: 600",
    ".quiet": "fill: #57606a",
    ".page": "fill: #ffffff",
    ".free": "fill: #eceff2",
    ".hatch": "stroke: #9aa4af; stroke-width: 1.2",
    ".edge": "stroke: #1f2328; stroke-width: 1",
}
_DARK = {
    "text": "fill: #e6edf3",
    ".quiet": "fill: #8b949e",
    ".page": "fill: #0d1117",
    ".free": "fill: #1c2128",
    ".hatch": "stroke: #57606a",
    ".edge": "stroke: #e6edf3",
}


def draw_segments(replay: Replay, width: int = 900, rows: int = 24) -> str:
    """The segments at the reserved peak of a replay, as the text of an SVG file."""
    picture = _Picture(replay, width, rows)
    body = "\n".join((*picture.heading(), *picture.memory(), *picture.edges(), *picture.legend()))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {picture.height}" width="{width}" '
        f'height="{picture.height}" class="weigh-segments" role="img" aria-label="{escape(picture.title)}">\n'
        f"{_style()}\n{_HATCH}\n{body}\n</svg>\n"
    )


_HATCH = (
    '<defs><pattern id="weigh-free" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect class="free" width="5" height="5"/><line class="hatch" x1="0" y1="0" x2="0" y2="5"/></pattern></defs>'
)


def _style() -> str:
    """Every rule says `.weigh-segments` first: in a notebook the picture shares its page with others."""
    light, dark = ("\n".join(f".weigh-segments {s} {{ {r} }}" for s, r in rules.items()) for rules in (_LIGHT, _DARK))
    return f"<style>\n{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n</style>"


class _Picture:
    """Where things stand on the page."""

    def __init__(self, replay: Replay, width: int, rows: int) -> None:
        self.replay, self.width = replay, width
        self.segments = sorted(replay.segments, key=lambda s: (s.small, s.stream, s.address))
        self.room = width - _LEFT - _RIGHT
        self.cells = round(self.room / _CELL)
        total = sum(s.num_bytes for s in self.segments)
        self.rows = max(1, min(rows, total // SMALL_SEGMENT))
        self.per_row = max(total, 1) / self.rows
        self.base = _TOP + self.rows * (_ROW + _GAP)
        self.amounts = {FREE: replay.idle}
        for segment in self.segments:
            for block in segment.blocks:
                purpose = block.allocation.purpose
                self.amounts[purpose] = self.amounts.get(purpose, 0) + block.num_bytes
        self.height = self.base + 30 + 17 * len(list(self._legend_lines()))

    @property
    def title(self) -> str:
        return f"{format_bytes(self.replay.reserved)} reserved, {self.replay.fragmentation:.1%} of it free"

    def heading(self) -> Iterator[str]:
        """Title, and when this is."""
        many = "segment" if len(self.segments) == 1 else "segments"
        phase = next((p.mark for p in reversed(self.replay.phases) if p.mark.event <= self.replay.event), None)
        when = f" when the reserved peak is first reached, in {phase.phase} {phase.round}" if phase else ""
        about = f"{len(self.segments):,} {many}{when}; {format_bytes(round(self.per_row))} a row"
        yield f'<rect class="page" width="{self.width}" height="{self.height}" rx="6"/>'
        yield f'<text class="title" x="{_LEFT}" y="28">{escape(self.title)}</text>'
        yield f'<text class="quiet" x="{_LEFT}" y="47">{escape(about)}</text>'

    def memory(self) -> Iterator[str]:
        """The rows, as runs of cells of one purpose."""
        at = 0
        for purpose, run in groupby(self._winners()):
            start, at = at, at + len(list(run))
            fill = "url(#weigh-free)" if purpose == FREE else COLOURS[purpose]
            name = FREE if purpose == FREE else PLURAL[purpose]
            for row in range(start // self.cells, (at - 1) // self.cells + 1):
                left = max(start - row * self.cells, 0) * _CELL
                right = min(at - row * self.cells, self.cells) * _CELL
                place = f'x="{_LEFT + left:g}" y="{self._y(row)}" width="{right - left:g}" height="{_ROW}"'
                yield f'<rect fill="{fill}" {place}><title>{escape(name)}</title></rect>'

    def _winners(self) -> Iterator[str]:
        """For every cell the purpose that has most of its bytes."""
        size = self.per_row / self.cells
        shares: list[dict[str, float]] = []
        for start, stop, purpose in self._stretches():
            for cell in range(int(start / size), int((stop - 1) / size) + 1):
                while len(shares) <= cell:
                    shares.append({})
                share = min(stop, (cell + 1) * size) - max(start, cell * size)
                shares[cell][purpose] = shares[cell].get(purpose, 0) + share
        for cell_shares in shares:
            yield max(cell_shares, key=lambda purpose: cell_shares[purpose])

    def _stretches(self) -> Iterator[tuple[int, int, str]]:
        """Start, stop and purpose of everything reserved, one after the other without a hole."""
        at = 0
        for segment in self.segments:
            end = at
            for block in segment.blocks:
                if at + block.offset > end:
                    yield end, at + block.offset, FREE
                end = at + block.offset + block.num_bytes
                yield at + block.offset, end, block.allocation.purpose
            at += segment.num_bytes
            if at > end:
                yield end, at, FREE

    def edges(self) -> Iterator[str]:
        """A line where a segment begins, unless the one before is too near."""
        lines = []
        at, last = 0, -10.0
        for segment in self.segments:
            row = min(int(at / self.per_row), self.rows - 1)
            x = (at / self.per_row - row) * self.room
            if row * self.room + x - last >= 3:
                last = row * self.room + x
                lines.append(f"M{_LEFT + x:.1f},{self._y(row)}v{_ROW}")
            at += segment.num_bytes
        yield f'<path class="edge" d="{"".join(lines)}"/>'

    def legend(self) -> Iterator[str]:
        """Colours and amounts, the largest first."""
        for number, line in enumerate(self._legend_lines()):
            y = self.base + 24 + 17 * number
            for x, purpose, label in line:
                fill = "url(#weigh-free)" if purpose == FREE else COLOURS[purpose]
                yield f'<rect fill="{fill}" x="{x:.0f}" y="{y - 10}" width="11" height="11" rx="2"/>'
                yield f'<text x="{x + 17:.0f}" y="{y}">{escape(label)}</text>'

    def _legend_lines(self) -> Iterator[list[tuple[float, str, str]]]:
        line: list[tuple[float, str, str]] = []
        x = float(_LEFT)
        for purpose, amount in sorted(self.amounts.items(), key=lambda item: -item[1]):
            label = f"{FREE if purpose == FREE else PLURAL[purpose]} {format_bytes(amount)}"
            room = 34 + 6.9 * len(label)
            if line and x + room > self.width:
                yield line
                line, x = [], float(_LEFT)
            line.append((x, purpose, label))
            x += room
        yield line

    def _y(self, row: int) -> int:
        return _TOP + row * (_ROW + _GAP)
