"""Charts of block characters: a stacked bar of the peak, and the level over a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.report.text import PLURAL, Style, share, table
from weigh.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from weigh.report.series import Series

_EIGHTHS = " ▁▂▃▄▅▆▇█"


def stacked_bar(amounts: Mapping[str, int], style: Style, indent: int = 2) -> list[str]:
    """A bar of purposes, as wide as the page, and a legend with the bytes of each."""
    whole = sum(amounts.values())
    ordered = [p for p in PLURAL if amounts.get(p)]
    width = style.width - 2 * indent
    cells, done, line = 0, 0, ""
    for purpose in ordered:
        done += amounts[purpose]
        until = round(done * width / whole)
        line += style.swatch(purpose) * (until - cells)
        cells = until
    rows = [
        (style.swatch(p), PLURAL[p], format_bytes(amounts[p]), share(amounts[p], whole))
        for p in sorted(ordered, key=lambda p: -amounts[p])
    ]
    return [" " * indent + line, "", *table(rows, "<<>>", indent)]


def timeline(series: Series, style: Style, height: int = 10) -> list[str]:
    """The level over a run, its peak and its phases marked; the purposes in colour, or as shades without it."""
    totals = series.totals
    peak = max(totals)
    labels = {0: format_bytes(peak), height // 2: format_bytes(peak // 2), height - 1: "0 B"}
    margin = max(map(len, labels.values())) + 1
    lines = [_pointer(series.peak_column, f"peak {format_bytes(peak)}", margin + 1, len(totals), style)]
    for row in range(height):
        label = labels.get(row, "").rjust(margin)
        cells = [
            _cell(series, column, total, peak, height - 1 - row, height, style) for column, total in enumerate(totals)
        ]
        lines.append(f"{style.dim(label + '┤')}{''.join(cells)}".rstrip())
    lines.append(style.dim(" " * margin + "└" + "─" * len(totals)))
    lines.append(" " * (margin + 1) + _phase_line(series, len(totals)))
    return lines


def _cell(series: Series, column: int, total: int, peak: int, row: int, height: int, style: Style) -> str:
    eighths = min(max(total * height * 8 // peak - row * 8, 0), 8)
    if not eighths:
        return " "
    purpose = _at(series.columns[column], total, (row * 2 + 1) * peak // (2 * height))
    if style.colour:
        return style.purpose(purpose, _EIGHTHS[eighths])
    return style.swatch(purpose) if eighths >= 4 else " "


def _at(column: Mapping[str, int], total: int, level: int) -> str:
    """The purpose at a height of a stacked column."""
    below = 0
    purpose = ""
    for purpose in PLURAL:
        below += column.get(purpose, 0)
        if below > min(level, total - 1):
            return purpose
    return purpose


def _pointer(column: int, text: str, margin: int, width: int, style: Style) -> str:
    if column + 2 + len(text) <= width:
        return " " * (margin + column) + style.bold(f"▼ {text}")
    return " " * (margin + column - len(text) - 1) + style.bold(f"{text} ▼")


def _phase_line(series: Series, width: int) -> str:
    line = [" "] * width
    starts = [*(start for _, start in series.phases), width]
    for (phase, start), stop in zip(series.phases, starts[1:], strict=True):
        room = stop - start
        if room > 1:
            for offset, letter in enumerate(f"│{phase}"[:room]):
                line[start + offset] = letter
    return "".join(line).rstrip()
