"""Putting text on a terminal: colour where it is wanted, aligned tables, bars."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    from collections.abc import Sequence

PLURAL = {
    WEIGHT: "weights",
    BUFFER: "buffers",
    INPUT: "inputs",
    OPTIMIZER_STATE: "optimizer state",
    GRADIENT: "gradients",
    KV_CACHE: "KV cache",
    RECURRENT_STATE: "recurrent state",
    ACTIVATION: "activations",
    UNSHARDED: "unsharded weights",
    COMMUNICATION: "communication",
    WORKSPACE: "workspaces",
    UNATTRIBUTED: "unattributed",
    TEMPORARY: "temporaries",
}
"""Purposes as a reader names them, in the order in which charts stack them: what stays longest at the bottom."""

_COLOURS = {
    WEIGHT: 32,
    BUFFER: 246,
    INPUT: 246,
    OPTIMIZER_STATE: 175,
    GRADIENT: 214,
    KV_CACHE: 74,
    RECURRENT_STATE: 117,
    ACTIVATION: 36,
    UNSHARDED: 72,
    COMMUNICATION: 185,
    WORKSPACE: 250,
    UNATTRIBUTED: 245,
    TEMPORARY: 166,
}
"""Of the 256-colour palette: Okabe and Ito's colours, told apart by the colour-blind, on dark and on light."""

_SHADES = {
    WEIGHT: "█",
    OPTIMIZER_STATE: "▓",
    GRADIENT: "▒",
    KV_CACHE: "▓",
    RECURRENT_STATE: "▓",
    ACTIVATION: "░",
    TEMPORARY: "▚",
}


class Style:
    """How to write: with or without colour, and how wide."""

    def __init__(self, colour: bool = False, width: int = 88) -> None:
        self.colour = colour
        self.width = width

    def bold(self, text: str) -> str:
        """Stands out."""
        return f"\x1b[1m{text}\x1b[0m" if self.colour else text

    def dim(self, text: str) -> str:
        """Stands back."""
        return f"\x1b[2m{text}\x1b[0m" if self.colour else text

    def good(self, text: str, good: bool | None) -> str:
        """Green, red, or (None) yellow."""
        number = {True: 32, False: 31, None: 33}[good]
        return f"\x1b[1;{number}m{text}\x1b[0m" if self.colour else text

    def purpose(self, purpose: str, text: str) -> str:
        """In the colour of a purpose."""
        return f"\x1b[38;5;{_COLOURS[purpose]}m{text}\x1b[0m" if self.colour else text

    def swatch(self, purpose: str) -> str:
        """One cell that stands for a purpose: its colour, or without colours its shade."""
        return self.purpose(purpose, "█") if self.colour else _SHADES.get(purpose, "·")


PLAIN = Style()


def share(part: int, whole: int) -> str:
    """Percent with one decimal.

    >>> share(1, 3)
    '33.3 %'
    """
    return f"{100 * part / whole:.1f} %" if whole else "-"


def exactly(num_bytes: int) -> str:
    """Bytes for people and for comparing.

    >>> exactly(497759232)
    '474.70 MiB (497,759,232 bytes)'
    """
    return f"{format_bytes(num_bytes)} ({num_bytes:,} bytes)"


def table(rows: Sequence[Sequence[str]], align: str, indent: int = 2) -> list[str]:
    """Rows of cells as aligned lines; `align` has "<" or ">" for every column. Colour codes take no room.

    >>> table([("a", "1"), ("bcd", "23")], "<>")
    ['  a     1', '  bcd  23']
    """
    widths = [max((_length(row[i]) for row in rows if i < len(row)), default=0) for i in range(len(align))]
    lines = []
    for row in rows:
        cells = []
        for cell, side, width in zip(row, align, widths, strict=False):
            gap = " " * (width - _length(cell))
            cells.append(gap + cell if side == ">" else cell + gap)
        lines.append((" " * indent + "  ".join(cells)).rstrip())
    return lines


def _length(cell: str) -> int:
    if "\x1b" not in cell:
        return len(cell)
    return sum(
        len(piece.partition("m")[2]) if number else len(piece) for number, piece in enumerate(cell.split("\x1b"))
    )


def bar(part: int, whole: int, width: int) -> str:
    """A bar of `width` cells, filled to an eighth of a cell.

    >>> bar(3, 8, 4)
    '█▌'
    """
    eighths = part * width * 8 // whole if whole else 0
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def wrap(text: str, width: int, indent: str = "") -> list[str]:
    """Lines of at most `width` characters, broken between words.

    >>> wrap("one two three", 8, "- ")
    ['- one', '- two', '- three']
    """
    lines: list[str] = []
    line = ""
    for word in text.split():
        if line and len(indent) + len(line) + 1 + len(word) > width:
            lines.append(indent + line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, indent + line] if line else lines
