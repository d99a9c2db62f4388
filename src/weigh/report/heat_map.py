"""Contexts by users as a heat map: how much of the cache's room each pair needs, and where it ends.

One file without outside references; it follows the reader's light or dark scheme where the viewer tells it.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from weigh.report.svg import style_sheet
from weigh.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from weigh.report.serving import ServingReport

_CELL_WIDTH, _CELL_HEIGHT = 66, 30
_LEFT, _TOP, _BOTTOM, _RIGHT = 84, 96, 66, 24

STEPS = ("#deebf7", "#c6dbef", "#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c", "#08306b")
"""Blues of ColorBrewer (https://colorbrewer2.org), told apart by the colour-blind: an eighth of the room each."""
BEYOND = "#d55e00"
"""Where there is no room."""


def draw(report: ServingReport) -> str:
    """The picture, as the text of an SVG file; without a device it has no end, and is shaded by the largest need."""
    held = report.table
    width = max(560, _LEFT + _CELL_WIDTH * len(held.users) + _RIGHT)
    height = _TOP + _CELL_HEIGHT * len(held.contexts) + _BOTTOM
    body = "\n".join((*_head(report, width, height), *_cells(report), *_axes(report), *_legend(report, height)))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'class="weigh" role="img" aria-label="{escape(_title(report))}">\n{style_sheet()}\n{body}\n</svg>\n'
    )


def _title(report: ServingReport) -> str:
    return f"{report.runtime} serving {report.served.source.name}: contexts and users"


def _head(report: ServingReport, width: int, height: int) -> Iterator[str]:
    yield f'<rect class="page" width="{width}" height="{height}"/>'
    yield f'<text class="title" x="20" y="30">{escape(_title(report))}</text>'
    device, supply = report.place.device, report.table.supply
    said = "cache that they need, in MiB (M), GiB (G) or TiB (T)"
    if device is not None and supply is not None:
        many = f" x {report.place.count}" if report.place.count > 1 else ""
        each = " on each device" if report.place.count > 1 else ""
        said = f"{device.marketing_name}{many} · {format_bytes(max(0, supply))} for the cache{each}; M is MiB, G is GiB"
    yield f'<text class="quiet" x="20" y="50">{escape(said)}</text>'
    yield f'<text class="quiet" x="{_LEFT + 8}" y="{_TOP - 26}">requests at once</text>'
    yield f'<text class="quiet end" x="{_LEFT - 8}" y="{_TOP - 8}">context</text>'


def _cells(report: ServingReport) -> Iterator[str]:
    held = report.table
    whole = held.supply if held.supply is not None else max(map(max, held.demand))
    for row, needs in enumerate(held.demand):
        for column, need in enumerate(needs):
            x, y = _LEFT + column * _CELL_WIDTH, _TOP + row * _CELL_HEIGHT
            step = len(STEPS) if need > whole else min(len(STEPS) - 1, len(STEPS) * need // max(1, whole))
            colour = BEYOND if step == len(STEPS) else STEPS[step]
            ink = "#ffffff" if step > 3 else "#1f2328"
            yield (
                f'<rect x="{x + 1}" y="{y + 1}" width="{_CELL_WIDTH - 2}" height="{_CELL_HEIGHT - 2}" rx="3" '
                f'fill="{colour}"/>'
            )
            text = _short(need)
            yield (
                f'<text class="middle" x="{x + _CELL_WIDTH // 2}" y="{y + _CELL_HEIGHT // 2 + 4}" '
                f'style="fill: {ink}; font-size: 11px">{text}</text>'
            )


def _short(num_bytes: int) -> str:
    number, _, unit = format_bytes(num_bytes).partition(" ")
    return f"{float(number):.3g} {unit.replace('iB', '')}" if unit != "B" else f"{number} B"


def _axes(report: ServingReport) -> Iterator[str]:
    from weigh.report.serving import format_tokens

    held = report.table
    for column, users in enumerate(held.users):
        x = _LEFT + column * _CELL_WIDTH + _CELL_WIDTH // 2
        yield f'<text class="middle" x="{x}" y="{_TOP - 8}">{users:,}</text>'
    for row, context in enumerate(held.contexts):
        y = _TOP + row * _CELL_HEIGHT + _CELL_HEIGHT // 2 + 4
        yield f'<text class="end" x="{_LEFT - 8}" y="{y}">{format_tokens(context)}</text>'


def _legend(report: ServingReport, height: int) -> Iterator[str]:
    y = height - 40
    for step, colour in enumerate(STEPS):
        yield f'<rect x="{_LEFT + step * 22}" y="{y}" width="22" height="12" fill="{colour}"/>'
    end = _LEFT + len(STEPS) * 22
    what = "all of the room" if report.table.supply is not None else "the most"
    yield f'<text class="quiet" x="{_LEFT}" y="{y + 28}">nothing</text>'
    yield f'<text class="quiet end" x="{end}" y="{y + 28}">{what}</text>'
    if report.table.supply is not None:
        yield f'<rect x="{end + 24}" y="{y}" width="22" height="12" fill="{BEYOND}"/>'
        yield f'<text class="quiet" x="{end + 52}" y="{y + 10}">does not fit</text>'
