"""A run as one page for a screen in front of a class: what was done, what it cost, pictures, words."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from weigh.lab import picture
from weigh.lab.report import NOTE, cells, perplexity
from weigh.lab.words import percent

if TYPE_CHECKING:
    from weigh.lab.report import LabReport, Line

_STYLE = """\
:root { color-scheme: light dark; --ink: #1f2328; --quiet: #57606a; --page: #ffffff; --rule: #d7dbe0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --quiet: #8b949e; --page: #0d1117; --rule: #30363d; }
}
body { font: 17px/1.5 system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; color: var(--ink);
  background: var(--page); max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
p.quiet, td.quiet { color: var(--quiet); }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.92rem; }
th, td { border-bottom: 1px solid var(--rule); padding: 0.3rem 0.6rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child, td.says { text-align: left; }
td.says { white-space: normal; color: var(--quiet); min-width: 16rem; }
svg { max-width: 100%; height: auto; }
"""
_HEAD = ("technique", "held-out loss", "perplexity", "against", "peak", "predicted", "off by", "weights", "CPU a step")


def page(report: LabReport) -> str:
    """The page, one file without outside references."""
    tables = "\n".join(_table(report, group, members) for group, members in report.groups().items())
    left_out = [x for x in report.lines if x.refused is not None]
    missing = "".join(f"<p>{escape(x.name)} was not run: {escape(str(x.refused))}</p>\n" for x in left_out)
    said = "".join(f"<p>{escape(words)}</p>\n" for words in report.conclusion())
    return f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<title>{escape(report.title())}: techniques at work</title>
<style>
{_STYLE}</style>
</head>
<body>
<h1>{escape(report.title())}: techniques at work</h1>
<p class="quiet">{escape(report.subtitle())}</p>
{said}
{picture.memory(report)}
{picture.losses(report)}
{tables}
{missing}<p class="quiet">{escape(NOTE)}</p>
</body>
</html>
"""


def _table(report: LabReport, group: str, members: list[Line]) -> str:
    head = "".join(f"<th>{escape(word)}</th>" for word in _HEAD)
    rows = "\n".join(_row(report, line) for line in members)
    return (
        f'<h2>{escape(group[0].upper() + group[1:])}</h2>\n<div class="wide"><table>\n<tr>{head}<th></th></tr>\n'
        f"{rows}\n</table></div>"
    )


def _row(report: LabReport, line: Line) -> str:
    loss, against, peak, predicted, weights, step = cells(report, line)
    off = percent(line.error)
    figures = (line.name, loss, f"{perplexity(line.loss):.2f}", against, peak, predicted, off, weights, step)
    cells_ = "".join(f"<td>{escape(figure)}</td>" for figure in figures)
    return f'<tr>{cells_}<td class="says">{escape(line.technique.says)}</td></tr>'
