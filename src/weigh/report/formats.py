"""The number formats: what they can hold, how their bits lie, who multiplies them, what a model weighs in them."""

from __future__ import annotations

from html import escape
from math import log10
from typing import TYPE_CHECKING, Any, NamedTuple

from weigh.dtypes import TABLE
from weigh.hardware import all_devices
from weigh.report.header import header
from weigh.report.text import PLAIN, Style, table, wrap
from weigh.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from weigh.dtypes import DType
    from weigh.report.parameters import ParametersReport

SIGN, EXPONENT, MANTISSA, INTEGER, UNUSED = "SEMI."
"""What a bit is for, as `bits` writes it; UNUSED ones are stored and not computed with."""
_MEANING = {
    SIGN: ("sign", "#d55e00"),
    EXPONENT: ("exponent", "#0072b2"),
    MANTISSA: ("mantissa", "#009e73"),
    INTEGER: ("integer", "#e69f00"),
    UNUSED: ("stored, not computed with", "#999999"),
}


def bits(dtype: DType) -> str | None:
    """The bits of one element from the highest to the lowest; None where codes mean nothing alone.

    >>> from weigh import dtypes
    >>> [bits(dtypes.get(name)) for name in ("bf16", "fp4_e2m1", "int8", "fp8_e8m0", "nf4")]
    ['SEEEEEEEEMMMMMMM', 'SEEM', 'SIIIIIII', 'EEEEEEEE', None]
    """
    width = round(dtype.bits_per_element)
    if dtype.kind == "float":
        assert dtype.exponent_bits is not None
        assert dtype.mantissa_bits is not None
        coded = EXPONENT * dtype.exponent_bits + MANTISSA * dtype.mantissa_bits
        signed = coded if len(coded) == width else SIGN + coded
        return signed + UNUSED * (width - len(signed))
    if dtype.kind == "int":
        return SIGN + INTEGER * (width - 1)
    return INTEGER * width if dtype.kind == "uint" else None


def digits(dtype: DType) -> float | None:
    """Decimal digits that survive rounding: log10 of 2^(mantissa + 1); None of anything but floats.

    >>> from weigh import dtypes
    >>> [round(digits(dtypes.get(name)), 1) for name in ("fp32", "fp16", "bf16", "fp8_e4m3")]
    [7.2, 3.3, 2.4, 1.2]
    """
    return None if dtype.mantissa_bits is None else (dtype.mantissa_bits + 1) * log10(2)


def whole_numbers(dtype: DType) -> int | None:
    """All whole numbers from 0 to this one are exact; None where codes mean nothing alone.

    >>> from weigh import dtypes
    >>> [whole_numbers(dtypes.get(name)) for name in ("bf16", "fp16", "fp6_e2m3", "int8")]
    [256, 2048, 7, 127]
    """
    if dtype.max is None:
        return None
    largest = int(dtype.max)
    return largest if dtype.mantissa_bits is None else min(int(2 ** (dtype.mantissa_bits + 1)), largest)


def multiplied_by(dtype: DType) -> dict[str, int]:
    """Devices that multiply matrices of that format, and how many operations a second; those with a source only.

    >>> from weigh import dtypes
    >>> multiplied_by(dtypes.get("bf16"))["h100-80gb"]
    989000000000000
    """
    return {d.name: d.flops[dtype.name] for d in all_devices() if dtype.name in d.flops}


class Cost(NamedTuple):
    """What a model's weights take in a format."""

    num_bytes: int
    """Every tensor on its own."""
    share: float
    """Of what they take in the model's own."""
    device: str | None
    """The smallest device of the catalogue that holds them; None where none does."""


class FormatsReport(NamedTuple):
    """Formats, and perhaps what a model weighs in each."""

    formats: tuple[DType, ...]
    model: ParametersReport | None = None

    @classmethod
    def of(cls, formats: Sequence[DType] = (), model: ParametersReport | None = None) -> FormatsReport:
        """Of these formats, else of all."""
        return cls(tuple(formats) or tuple(TABLE.values()), model)

    def cost(self, dtype: DType) -> Cost | None:
        """What the model weighs in a format; None without a model, and of formats that weights do not have."""
        if self.model is None or dtype.kind in ("complex", "bool"):
            return None
        num_bytes = self.model.bytes_in(dtype)
        holding = [d for d in all_devices() if d.memory_bytes - (d.reserved_bytes or 0) > num_bytes]
        smallest = min(holding, key=lambda d: d.memory_bytes, default=None)
        return Cost(num_bytes, num_bytes / self.model.num_bytes, None if smallest is None else smallest.name)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, by `docs/schema/dtypes.json`."""
        own = self.model
        top = header("dtypes") if own is None else header("dtypes", own.source, own.dtype)
        return {**top, "dtypes": [self._row(d) for d in self.formats]}

    def _row(self, d: DType) -> dict[str, Any]:
        cost = self.cost(d)
        return {
            "name": d.name,
            "kind": d.kind,
            "bits_per_element": d.bits_per_element,
            "elements_per_block": d.elements_per_block,
            "bytes_per_block": d.bytes_per_block,
            "exponent_bits": d.exponent_bits,
            "mantissa_bits": d.mantissa_bits,
            "bits": bits(d),
            "max": d.max,
            "min_normal": d.min_normal,
            "min_subnormal": d.min_subnormal,
            "epsilon": d.epsilon,
            "digits": digits(d),
            "whole_numbers": whole_numbers(d),
            "operations_per_second": multiplied_by(d),
            "model": None if cost is None else {"bytes": cost.num_bytes, "share": cost.share, "device": cost.device},
            "source": d.source,
            "notes": d.notes,
        }

    # -- text
    def text(self, style: Style = PLAIN) -> str:
        """All as a table; a few one by one."""
        if len(self.formats) <= 4:
            return "\n\n".join("\n".join(self._described(d, style)) for d in self.formats)
        if self.model is not None:
            return "\n".join(self._weighed(style))
        head = ("name", "kind", "bits", "block", "layout", "largest", "smallest", "epsilon", "digits")
        rows: list[tuple[str, ...]] = [head]
        for d in self.formats:
            block = "" if d.elements_per_block == 1 else f"{d.elements_per_block} in {d.bytes_per_block} B"
            layout = "" if d.exponent_bits is None else f"1+{d.exponent_bits}+{d.mantissa_bits}"
            if d.name == "fp8_e8m0":
                layout = "0+8+0"
            limits = ("" if x is None else f"{x:.6g}" for x in (d.max, d.min_subnormal, d.epsilon))
            many = digits(d)
            shown = "" if many is None else f"{many:.1f}"
            rows.append((d.name, d.kind, f"{d.bits_per_element:.6g}", block, layout, *limits, shown))
        return "\n".join(table(rows, "<<>><>>>>", indent=0))

    def _weighed(self, style: Style) -> Iterator[str]:
        assert self.model is not None
        source = self.model.source
        yield style.bold(f"The weights of {source.name}: {self.model.total:,} parameters, {self.model.dtype.name}")
        rows: list[tuple[str, ...]] = [("name", "bits", "weights", "of its own", "the smallest device")]
        for d in self.formats:
            cost = self.cost(d)
            if cost is not None:
                share, device = f"{100 * cost.share:.1f} %", cost.device or "none"
                rows.append((d.name, f"{d.bits_per_element:.6g}", format_bytes(cost.num_bytes), share, device))
        yield from table(rows, "<>>><")
        said = (
            "Every tensor in one format, scales within its blocks included. Methods leave some tensors alone and have "
            "scales of their own: a quantized checkpoint's `weigh params` says what it takes."
        )
        yield from (style.dim(line) for line in wrap(said, style.width))

    def _described(self, d: DType, style: Style) -> Iterator[str]:
        block = f"{d.elements_per_block} elements in {d.bytes_per_block} bytes"
        yield style.bold(f"{d.name}: {d.bits_per_element:g} bits") + ("" if d.elements_per_block == 1 else f", {block}")
        drawn = bits(d)
        if drawn is not None:
            runs = {bit: drawn.count(bit) for bit in dict.fromkeys(drawn)}
            yield f"  {drawn}   {', '.join(f'{n} {_MEANING[bit][0]}' for bit, n in runs.items())}"
        rows = [(name, f"{value:.9g}") for name, value in self._limits(d) if value is not None]
        yield from table(rows, "<<")
        speeds = [f"{name} {speed / 1e12:,.4g}" for name, speed in multiplied_by(d).items()]
        if speeds:
            yield from wrap(f"multiplied by (TFLOP/s, dense): {', '.join(speeds)}", style.width, "  ")
        elif d.kind != "block":
            yield "  multiplied by: no device of `weigh devices` with a source for it"
        cost = self.cost(d)
        if cost is not None and self.model is not None:
            on = f"{cost.device} holds that" if cost.device else "no device of `weigh devices` holds that"
            size = f"{format_bytes(cost.num_bytes)}, {100 * cost.share:.1f} % of {self.model.dtype.name}"
            yield f"  {self.model.source.name}: {size}; {on}"
        if d.notes:
            yield from wrap(d.notes, style.width, "  ")
        yield from wrap(f"Source: {d.source}", style.width, "  ")

    def _limits(self, d: DType) -> Iterator[tuple[str, float | None]]:
        yield from (("largest", d.max), ("smallest normal", d.min_normal), ("smallest", d.min_subnormal))
        yield from (("epsilon", d.epsilon), ("decimal digits", digits(d)), ("whole numbers to", whole_numbers(d)))

    # -- picture
    def svg(self) -> str:
        """The bits of those that have any, a row each, as the text of an SVG file."""
        from weigh.report.svg import style_sheet

        drawn = {d: pattern for d in self.formats if (pattern := bits(d)) is not None}
        cell, left, top = 11, 118, 62
        longest = max(map(len, drawn.values()), default=8)
        width, height = max(left + longest * cell + 220, 640), top + 20 * len(drawn) + 46
        title = "The bits of number formats"
        body = [
            f'<rect class="page" width="{width}" height="{height}" rx="6"/>',
            f'<text class="title" x="24" y="28">{title}</text>',
            '<text class="quiet" x="24" y="47">the highest bit first; behind them the largest value and epsilon</text>',
            *(
                part
                for row, (d, pattern) in enumerate(drawn.items())
                for part in _bars(d, pattern, left, top + 20 * row)
            ),
            *_legend(drawn, height - 20),
        ]
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" class="weigh" role="img" aria-label="{title}">\n{style_sheet()}\n'
            + "\n".join(body)
            + "\n</svg>\n"
        )


def _bars(d: DType, pattern: str, left: int, y: int, cell: int = 11) -> Iterator[str]:
    yield f'<text class="end" x="{left - 10}" y="{y + 12}">{escape(d.name)}</text>'
    for number, bit in enumerate(pattern):
        meaning, colour = _MEANING[bit]
        place = f'x="{left + number * cell}" y="{y}" width="{cell - 1}" height="15" rx="1.5"'
        yield f'<rect fill="{colour}" {place}><title>{meaning}</title></rect>'
    limits = [f"{d.max:.4g}", *([] if d.epsilon is None else [f"{d.epsilon:.3g}"])]
    yield f'<text class="quiet" x="{left + len(pattern) * cell + 10}" y="{y + 12}">{", ".join(limits)}</text>'


def _legend(drawn: Mapping[DType, str], y: int) -> Iterator[str]:
    x = 24.0
    for bit, (meaning, colour) in _MEANING.items():
        if any(bit in pattern for pattern in drawn.values()):
            yield f'<rect fill="{colour}" x="{x:.0f}" y="{y - 10}" width="11" height="11" rx="2"/>'
            yield f'<text x="{x + 17:.0f}" y="{y}">{meaning}</text>'
            x += 40 + 6.9 * len(meaning)
