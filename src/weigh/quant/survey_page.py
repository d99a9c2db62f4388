"""The errors of a checkpoint as a page by itself: tables, and a histogram of error magnitudes for each format."""

from __future__ import annotations

from html import escape

from weigh.quant.errors import LEAST_POWER, Errors
from weigh.quant.survey import LEGEND, Survey, cells, named

_CSS = (
    "body{font:14px system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}"
    "td,th{padding:2px 10px;text-align:right;border-bottom:1px solid #d7dbe0}td:first-child,th:first-child"
    "{text-align:left}p{color:#57606a;margin:2px 0}"
)
_HEAD = (
    "<tr><th></th><th>rel. RMSE</th><th>SQNR</th><th>cosine</th><th>largest</th><th>rest</th><th>alone</th>"
    "<th>outliers</th></tr>"
)


def page(survey: Survey) -> str:
    """Its HTML, with pictures and style in it."""
    parts = []
    for name in survey.rows:
        layers = "".join(_row(layer, errors) for layer, errors in survey.layers(name).items())
        tensors = "".join(_row(tensor, errors) for tensor, errors in named(survey.rows[name]))
        parts.append(
            f"<h2>{escape(name)}: {survey.bits(name):.3f} bits a weight</h2>{_histogram(survey.total(name))}"
            f"<table>{_HEAD}{_row('all', survey.total(name))}{layers}</table>"
            f"<details><summary>tensor by tensor</summary><table>{_HEAD}{tensors}</table></details>"
        )
    legend = "".join(f"<p>{escape(line)}</p>" for line in LEGEND)
    title = escape(f"Errors of {survey.source}")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_CSS}</style>'
        f"<h1>{title}</h1>{legend}{''.join(parts)}</html>\n"
    )


def _row(name: str, errors: Errors) -> str:
    row = (name, *cells(errors), f"{errors.outliers:,}")
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"


def _histogram(errors: Errors) -> str:
    """Bars of how many errors are of which size, in root mean squares."""
    highest, wide, high = max(errors.histogram) or 1, 22, 90
    bars = []
    for i, count in enumerate(errors.histogram):
        height = high * count / highest
        power = LEAST_POWER + i - 1
        said = f"{'below' if i == 0 else 'from'} 2^{max(power, LEAST_POWER)}: {count:,}"
        bars.append(
            f'<rect x="{i * wide}" y="{high - height:.1f}" width="{wide - 2}" height="{height:.1f}" fill="#0072b2">'
            f"<title>{said} errors</title></rect>"
        )
        if i % 4 == 1:
            bars.append(f'<text x="{i * wide}" y="{high + 14}" font-size="10" fill="#57606a">2^{power}</text>')
    size = f'viewBox="0 0 {wide * len(errors.histogram)} {high + 20}" width="{wide * len(errors.histogram)}"'
    said = "error magnitudes in root mean squares of their tensor, and how many there are"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{said}">{"".join(bars)}</svg>'
