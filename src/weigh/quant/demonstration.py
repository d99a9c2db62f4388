"""One large value ruins what shares its scale; blocks keep the damage to themselves. With numbers, and a picture.

The vector is that of Hugging Face's introduction to 8-bit inference (hf.co/blog/hf-bitsandbytes-integration), its
last value being replaced by an outlier. The longer one is 512 normal numbers with one of them made large.
"""

from __future__ import annotations

from html import escape
from math import sqrt
from typing import Any

import numpy as np

from weigh.errors import UsageError
from weigh.quant.absmax import Absmax
from weigh.quant.blockwise import BlockAbsmax
from weigh.quant.errors import compare
from weigh.quant.llm_int8 import METHODS, product
from weigh.records import dataclass
from weigh.report.header import header
from weigh.report.svg import style_sheet
from weigh.report.text import PLAIN, Style, table

VECTOR = (1.2, -0.5, -4.3, 1.2, -3.1, 0.8, 2.4, 5.4)
LENGTH, BLOCK = 512, 64
ROWS, WIDTH, OUTPUTS, COLUMNS = 64, 768, 128, 6
"""Of the layer: six outlier columns are what the paper finds at 6.7B parameters."""
SEED = 20


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A vector with and without its outlier, and a long one with one scale and with blocks."""

    vector: tuple[float, ...]
    outlier: float
    codes: tuple[tuple[int, ...], tuple[int, ...]]
    """Without the outlier, and with it."""
    back: tuple[tuple[float, ...], tuple[float, ...]]
    by_block: tuple[tuple[float, ...], tuple[float, ...]]
    """Root mean square error of each block of the long vector: one scale for all, one for each block."""
    block: int
    """Of values."""
    hit: int
    """The block that has the outlier."""
    products: dict[str, float]
    """Root mean square error of a product in int8 by each method of `weigh.quant.llm_int8`."""
    alone: float
    """That of LLM.int8() where the outlier columns are zeros."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **header("outliers"),
            "vector": list(self.vector),
            "outlier": self.outlier,
            "codes": {"without": list(self.codes[0]), "with": list(self.codes[1])},
            "values": {"without": list(self.back[0]), "with": list(self.back[1])},
            "rmse_by_block": {"one_scale": list(self.by_block[0]), "a_scale_each": list(self.by_block[1])},
            "block": self.block,
            "block_with_outlier": self.hit,
            "rmse_of_products": self.products,
            "rmse_of_product_without_outliers": self.alone,
        }

    def text(self, style: Style = PLAIN) -> str:
        """For people."""
        replaced = (*self.vector[:-1], self.outlier)
        rows = [("value", "code", "comes back", "off by", "", f"with {self.outlier:g}", "code", "comes back", "off by")]
        for i, (value, other) in enumerate(zip(self.vector, replaced, strict=True)):
            cells = []
            for which, true in enumerate((value, other)):
                back = self.back[which][i]
                cells.append((f"{true:g}", str(self.codes[which][i]), f"{back:.4f}", f"{abs(back - true):.4f}"))
            rows.append((*cells[0], "", *cells[1]))
        whole, blocks = self.by_block
        ratio = sqrt(sum(x * x for x in whole) / sum(x * x for x in blocks))
        others = [(a, b) for i, (a, b) in enumerate(zip(whole, blocks, strict=True)) if i != self.hit]
        apart = sqrt(sum(a * a for a, _ in others) / sum(b * b for _, b in others)) if others else 1.0
        long = [("block", "one scale", f"a scale for {self.block}")]
        long += [
            (f"{i}{' *' if i == self.hit else ''}", f"{a:.5f}", f"{b:.5f}")
            for i, (a, b) in enumerate(zip(whole, blocks, strict=True))
        ]
        products = [("scales", "RMS error")]
        products += [(says, f"{self.products[name]:.5f}") for name, says in _METHODS.items()]
        products.append(("LLM.int8(), the outlier columns being zeros", f"{self.alone:.5f}"))
        return "\n".join(
            [
                style.bold("int8 by the largest magnitude, without and with one outlier"),
                "",
                *table(rows, ">>>>>>>>>"),
                "",
                style.bold(f"{len(whole) * self.block} normal numbers, one made {self.outlier:g}: RMS error by block"),
                "",
                *table(long, "<>>"),
                "",
                f"  One scale errs {ratio:.1f} times as much over all, {apart:.1f} times apart from block (*).",
                "",
                style.bold(f"A layer in int8 whose inputs have {COLUMNS} outlier columns of {WIDTH}"),
                "",
                *table(products, "<>"),
            ]
        )

    def svg(self, width: int = 900, height: int = 420) -> str:
        """The errors of both ways, block by block."""
        whole, blocks = self.by_block
        left, right, top, base = 74, width - 24, 84, height - 60
        highest = max(*whole, *blocks) or 1.0
        step = (right - left) / len(whole)
        wide = (step - 8) / 2
        said = f"{len(whole) * self.block} normal numbers, one of them made {self.outlier:g} (in block {self.hit})"
        said += "; root mean square error of int8 by block"
        parts = [
            f'<rect class="page" width="{width}" height="{height}" rx="6"/>',
            f'<text class="title" x="{left}" y="28">One outlier, one scale: every block pays</text>',
            f'<text class="quiet" x="{left}" y="47">{escape(said)}</text>',
        ]
        for i in range(5):
            value, y = highest * i / 4, base - (base - top) * i / 4
            parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="quiet end" x="{left - 8}" y="{y + 4:.1f}">{value:.3g}</text>')
        for i, pair in enumerate(zip(whole, blocks, strict=True)):
            for j, (error, colour, name) in enumerate(zip(pair, ("#d55e00", "#0072b2"), _NAMES, strict=True)):
                tall = (base - top) * error / highest
                parts.append(
                    f'<rect x="{left + step * i + 4 + j * wide:.1f}" y="{base - tall:.1f}" fill="{colour}" '
                    f'width="{wide:.1f}" height="{tall:.1f}"><title>{escape(name)}: {error:.5f}</title></rect>'
                )
            parts.append(f'<text class="quiet middle" x="{left + step * (i + 0.5):.1f}" y="{base + 18}">{i}</text>')
        for j, (colour, name) in enumerate(zip(("#d55e00", "#0072b2"), _NAMES, strict=True)):
            parts.append(f'<rect x="{left + 240 * j}" y="{base + 32}" width="12" height="12" fill="{colour}"/>')
            parts.append(f'<text x="{left + 18 + 240 * j}" y="{base + 42}">{escape(name)}</text>')
        parts.append(f'<text class="quiet end" x="{right}" y="{base + 42}">blocks of {self.block} numbers →</text>')
        body = "\n".join(parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'class="weigh" role="img" aria-label="Errors of int8 with one outlier">\n{style_sheet()}\n{body}\n</svg>\n'
        )


_METHODS = {
    "absmax": "one for the inputs, one for the weight",
    "row": "one for each row of the inputs, one for the weight",
    "vector": "one for each row of both",
    "llm_int8": "LLM.int8(): the same, outlier columns apart in fp16",
}
_NAMES = ("one scale for all", "one scale for each block")


def demonstrate(outlier: float = 54.5, vector: tuple[float, ...] = VECTOR, block: int = BLOCK) -> Demonstration:
    """What an outlier does to int8.

    Raises:
        UsageError: the vector is too short, or blocks do not divide the long one.
    """
    if len(vector) < 2:
        raise UsageError(f"has {len(vector)} values", where="--vector", hint="Give at least two.")
    if not 2 <= block <= LENGTH or LENGTH % block:
        raise UsageError(f"is {block}", where="--block", hint=f"It must divide {LENGTH}.")
    quantizer = Absmax("tensor")
    codes, back = [], []
    for values in (vector, (*vector[:-1], outlier)):
        packed = quantizer.quantize(np.array(values, np.float32))
        codes.append(tuple(packed.parts["codes"].tolist()))
        back.append(tuple(quantizer.dequantize(packed).tolist()))
    long = np.random.default_rng(SEED).standard_normal(LENGTH).astype(np.float32)
    at = LENGTH // 2 + block // 3
    long[at] = outlier
    by_block = []
    for found in (quantizer.round_trip(long), BlockAbsmax(block).round_trip(long)):
        pairs = zip(long.reshape(-1, block), found.reshape(-1, block), strict=True)
        by_block.append(tuple(sqrt(compare(a, b).squared_error / block) for a, b in pairs))
    products, alone = _products()
    return Demonstration(
        vector=vector,
        outlier=outlier,
        codes=(codes[0], codes[1]),
        back=(back[0], back[1]),
        by_block=(by_block[0], by_block[1]),
        block=block,
        hit=at // block,
        products=products,
        alone=alone,
    )


def _products() -> tuple[dict[str, float], float]:
    """Errors by method, and without the outlier columns."""
    rng = np.random.default_rng(SEED)
    hidden, weight = rng.standard_normal((ROWS, WIDTH)), rng.standard_normal((OUTPUTS, WIDTH)) * 0.02
    columns = rng.choice(WIDTH, COLUMNS, replace=False)
    hidden[:, columns] = rng.choice((-1, 1), COLUMNS) * rng.uniform(20, 60, (ROWS, COLUMNS))
    without = hidden.copy()
    without[:, columns] = 0

    def off(inputs: Any, method: str) -> float:
        inputs, matrix = (x.astype(np.float16).astype(np.float32) for x in (inputs, weight))
        error = product(inputs, matrix, method) - inputs.astype(np.float64) @ matrix.T.astype(np.float64)
        return float(np.sqrt((error**2).mean()))

    return {method: off(hidden, method) for method in METHODS}, off(without, "llm_int8")
