"""Contexts by users by devices as a picture: a panel a device, a cell's shade its speed, its words speed and memory.

One file without outside references; it follows the reader's light or dark scheme where the viewer tells it.
"""

from __future__ import annotations

from html import escape
from math import ceil, log, sqrt
from typing import TYPE_CHECKING

from weigh.report.heat_map import BEYOND, STEPS
from weigh.report.serving import format_tokens
from weigh.report.speed import few
from weigh.report.svg import style_sheet
from weigh.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from weigh.report.serving_grid import Cell, DeviceGrid, ServingGrid

_CELL_WIDTH, _CELL_HEIGHT = 46, 30
_LEFT, _TOP, _GAP = 64, 62, 28
_HEAD, _FOOT = 84, 64
_PAGE = 2100
"""Panels stand beside each other up to this width, and as many as below each other."""


def draw(grid: ServingGrid) -> str:
    """The picture, as the text of an SVG file."""
    wide, high = _LEFT + _CELL_WIDTH * len(grid.users), _TOP + _CELL_HEIGHT * len(grid.contexts)
    columns = max(1, min(ceil(sqrt(len(grid.devices))), (_PAGE - _GAP) // (wide + _GAP)))
    width = max(640, _GAP + columns * (wide + _GAP))
    height = _HEAD + ceil(len(grid.devices) / columns) * (high + _GAP) + _FOOT
    body = [*_head(grid, width, height)]
    ends = _ends(grid)
    for number, one in enumerate(grid.devices):
        x = _GAP + number % columns * (wide + _GAP)
        y = _HEAD + number // columns * (high + _GAP)
        body += [f'<g transform="translate({x} {y})">', *_panel(grid, one, ends), "</g>"]
    body += _legend(ends, height)
    text = "\n".join(body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'class="weigh" role="img" aria-label="{escape(_title(grid))}">\n{style_sheet()}\n{text}\n</svg>\n'
    )


def _title(grid: ServingGrid) -> str:
    first = grid.reports[0]
    return (
        f"{first.runtime} serving {first.served.source.name}, weights in {first.launch.weights or first.served.dtype}"
    )


def _head(grid: ServingGrid, width: int, height: int) -> Iterator[str]:
    yield f'<rect class="page" width="{width}" height="{height}"/>'
    yield f'<text class="title" x="20" y="30">{escape(_title(grid))}</text>'
    said = (
        "rows: tokens of each request; columns: requests at once. Above: tokens/s for each; below: share of the cache"
    )
    yield f'<text class="quiet" x="20" y="50">{said}</text>'


def _ends(grid: ServingGrid) -> tuple[float, float] | None:
    """The slowest and the fastest cell, in tokens a second for each; None where no speed is said."""
    found = [c.decode.each for one in grid.devices for row in one.rows for c in row if c.decode is not None]
    return (min(found), max(found)) if found else None


def _panel(grid: ServingGrid, one: DeviceGrid, ends: tuple[float, float] | None) -> Iterator[str]:
    room = (
        f"{format_bytes(one.room)} for the cache" if one.room > 0 else f"{format_bytes(-one.room)} short of its weights"
    )
    yield f'<text class="strong" x="0" y="14">{escape(one.name)}</text>'
    yield f'<text class="quiet" x="0" y="32">{room}</text>'
    for column, users in enumerate(grid.users):
        x = _LEFT + column * _CELL_WIDTH + _CELL_WIDTH // 2
        yield f'<text class="middle" x="{x}" y="{_TOP - 8}">{users:,}</text>'
    for row, cells in enumerate(one.rows):
        top = _TOP + row * _CELL_HEIGHT
        yield f'<text class="end" x="{_LEFT - 8}" y="{top + 19}">{format_tokens(cells[0].context)}</text>'
        for column, cell in enumerate(cells):
            yield from _cell(cell, one, ends, _LEFT + column * _CELL_WIDTH, top)


def _cell(cell: Cell, one: DeviceGrid, ends: tuple[float, float] | None, x: int, y: int) -> Iterator[str]:
    share = cell.cache_bytes / one.room if one.room > 0 else 1.0
    step = _step(cell.decode.each, ends) if cell.decode is not None and ends is not None else int(share * len(STEPS))
    step = min(step, len(STEPS) - 1)
    colour = STEPS[step] if cell.fits else BEYOND
    ink = "#ffffff" if cell.fits and step > 3 else "#1f2328"
    yield (
        f'<rect x="{x + 1}" y="{y + 1}" width="{_CELL_WIDTH - 2}" height="{_CELL_HEIGHT - 2}" rx="3" fill="{colour}"/>'
    )
    if not cell.fits:
        return
    middle = x + _CELL_WIDTH // 2
    fast = "" if cell.decode is None else few(cell.decode.each)
    yield f'<text class="middle" x="{middle}" y="{y + 13}" style="fill: {ink}; font-size: 11px">{fast}</text>'
    yield f'<text class="middle" x="{middle}" y="{y + 24}" style="fill: {ink}; font-size: 9px">{share:.0%}</text>'


def _step(each: float, ends: tuple[float, float]) -> int:
    """Which shade: as many factors above the slowest cell."""
    low, high = ends
    return int(len(STEPS) * log(each / low) / log(high / low)) if high > low else len(STEPS) - 1


def _legend(ends: tuple[float, float] | None, height: int) -> Iterator[str]:
    y = height - _FOOT + 12
    for step, colour in enumerate(STEPS):
        yield f'<rect x="{_GAP + step * 22}" y="{y}" width="22" height="12" fill="{colour}"/>'
    end = _GAP + len(STEPS) * 22
    low, high = ("nothing", "all of the cache") if ends is None else (few(ends[0]), f"{few(ends[1])} tokens/s for each")
    yield f'<text class="quiet" x="{_GAP}" y="{y + 28}">{low}</text>'
    yield f'<text class="quiet end" x="{end}" y="{y + 28}">{high}</text>'
    yield f'<rect x="{end + 24}" y="{y}" width="22" height="12" fill="{BEYOND}"/>'
    yield f'<text class="quiet" x="{end + 52}" y="{y + 10}">does not fit</text>'
