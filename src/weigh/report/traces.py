"""Two traces side by side (a prediction and a witness, or two of either): text, JSON and a picture."""

from __future__ import annotations

from dataclasses import asdict
from html import escape
from typing import TYPE_CHECKING, Any

from weigh.records import dataclass
from weigh.report.header import header
from weigh.report.parts import layer
from weigh.report.svg import COLOURS, style_sheet
from weigh.report.text import PLURAL
from weigh.trace.compare import Comparison, Pair, compare
from weigh.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from weigh.report.parts import Parts
    from weigh.trace.events import Allocation, Trace


@dataclass(frozen=True, eq=False, repr=False)
class TracesReport:
    """What `weigh compare A.trace B.trace` says."""

    comparison: Comparison
    """What was found."""

    @classmethod
    def of(
        cls, a: Trace, b: Trace, names: tuple[str, str], parts: Parts | None = None, loading: bool = False
    ) -> TracesReport:
        """Lay two traces beside each other by purpose, layer and, where the model's `parts` are known, component."""
        by: dict[str, Callable[[Allocation], str]] = {} if parts is None else {"component": parts.component}
        return cls(compare(a, b, names, {**by, "layer": _layer}, loading))

    def text(self) -> str:
        """Tables."""
        return self.comparison.text()

    def as_dict(self) -> dict[str, Any]:
        """For JSON, by `docs/schema/traces.json`."""
        c = self.comparison
        divided = {"purpose": c.purposes, **c.others, "phase": c.phases}
        return {
            **header("traces"),
            "traces": [c.left, c.right],
            "peak": _row(c.peak),
            **{f"by_{name}": [_row(pair) for pair in pairs] for name, pairs in divided.items()},
            "parting": c.parting and asdict(c.parting),
        }

    def svg(self, width: int = 760) -> str:
        """Two bars for every purpose, one for each of the two."""
        c = self.comparison
        highest = max([1, *(n for p in c.purposes for n in (p.left or 0, p.right or 0))])
        height = _TOP + _ROW * len(c.purposes) + 40
        title = f"{c.left} and {c.right}: {_bytes(c.peak.left)} and {_bytes(c.peak.right)} at the peak"
        rows = "\n".join(line for n, pair in enumerate(c.purposes) for line in _bars(pair, n, highest, width))
        parts = "the two do the same, event by event"
        if c.parting is not None:
            parts = f"they part at event {c.parting.event:,}, in {c.parting.phase}"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'class="weigh" role="img" aria-label="{escape(title)}">\n{style_sheet()}\n'
            f'<rect class="page" width="{width}" height="{height}" rx="6"/>\n'
            f'<text class="title" x="24" y="28">{escape(title)}</text>\n'
            f'<text class="quiet" x="24" y="47">In every pair the upper bar is {escape(c.left)}; {parts}.</text>\n'
            f"{rows}\n</svg>\n"
        )

    def __str__(self) -> str:
        return self.text()


_TOP, _ROW, _LEFT, _RIGHT = 70, 44, 150, 190


def _bars(pair: Pair, number: int, highest: int, width: int) -> Iterator[str]:
    y = _TOP + _ROW * number
    yield f'<text class="end" x="{_LEFT - 10}" y="{y + 20}">{escape(PLURAL.get(pair.name, pair.name))}</text>'
    for offset, amount, opacity in ((0, pair.left, 1), (16, pair.right, 0.6)):
        length = (width - _LEFT - _RIGHT) * (amount or 0) / highest
        fill = f'fill="{COLOURS.get(pair.name, "#999999")}" fill-opacity="{opacity}"'
        yield f'<rect {fill} x="{_LEFT}" y="{y + offset}" width="{length:.1f}" height="14"/>'
        yield f'<text class="quiet" x="{_LEFT + length + 6:.1f}" y="{y + offset + 11}">{_bytes(amount)}</text>'
    if pair.difference:
        yield f'<text class="end" x="{width - 24}" y="{y + 20}">{pair.difference:+,} B</text>'


def _bytes(amount: int | None) -> str:
    return "-" if amount is None else format_bytes(amount)


def _row(pair: Pair) -> dict[str, Any]:
    return {"name": pair.name, "left": pair.left, "right": pair.right, "difference": pair.difference}


def _layer(allocation: Allocation) -> str:
    number = layer(allocation.path)
    return "outside of the layers" if number is None else f"layer {number}"
