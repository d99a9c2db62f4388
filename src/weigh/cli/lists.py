"""`weigh dtypes`, `weigh models` and `weigh devices`: what is known by name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from weigh.cli import COMMANDS
from weigh.cli.options import Parser
from weigh.errors import UnknownNameError, UsageError
from weigh.report.header import header
from weigh.report.text import table
from weigh.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from weigh.report.text import Style


def answer(command: str, words: Sequence[str]) -> tuple[str, int]:
    """The answer of one command, and its exit code."""
    parser = Parser(command, f"Lists {COMMANDS[command][1]}.")
    if command in ("models", "devices"):
        parser.add_argument("--search", default="", metavar="TEXT", help="those with all these words in their names")
    if command == "devices":
        parser.add_argument("names", metavar="NAME", nargs="*", help='these in full, with sources; "here" is your own')
        parser.add_argument("--maker", default="", metavar="NAME", help="those of one maker: NVIDIA, AMD, Apple, ...")
    if command == "dtypes":
        parser.add_argument("names", metavar="NAME", nargs="*", help="these in full: bits, limits, who multiplies them")
        parser.add_argument("--model", metavar="MODEL", help="what the weights of a model take in each")
        parser.add_argument("--svg", metavar="FILE", help="draw the bits into a file")
    found = parser.read(words)
    if found is None:
        return parser.format_help(), 0
    if command == "dtypes":
        return _dtypes(found)
    if command == "models":
        rows, lines = _models(found.search)
    else:
        from weigh.report.devices import list_devices

        rows, lines = list_devices(found.names, found.search, found.maker, style_of())
    if found.json:
        return json.dumps({**header(command), command: rows}, indent=2, ensure_ascii=False), 0
    return "\n".join(lines), 0


def _dtypes(found: Any) -> tuple[str, int]:
    from weigh import api, dtypes
    from weigh.cli.weighing import save, style
    from weigh.report.formats import FormatsReport

    try:
        chosen = [dtypes.get(name) for name in found.names]
    except UnknownNameError as error:
        raise UsageError(error.what, where="dtypes", hint=error.hint) from None
    report = FormatsReport.of(chosen, None if found.model is None else api.params(found.model))
    if found.svg is not None:
        save(found.svg, report.svg())
    if found.json:
        return json.dumps(report.as_dict(), indent=2, ensure_ascii=False), 0
    return report.text(style()), 0


def _models(search: str) -> tuple[list[dict[str, Any]], list[str]]:
    from weigh import dtypes
    from weigh.sources.catalogue import entries
    from weigh.units import format_count

    rows: list[dict[str, Any]] = []
    shown = [("name", "parameters", "", "weights", "other names")]
    for entry in entries(search):
        dtype = dtypes.get(entry.config["dtype"])
        num_bytes = dtype.num_bytes(entry.parameters)
        rows.append(
            {
                "name": entry.name,
                "title": entry.title,
                "model_type": entry.config["model_type"],
                "parameters": entry.parameters,
                "dtype": dtype.name,
                "bytes": num_bytes,
                "aliases": list(entry.aliases),
                "source": entry.source,
                "revision": entry.revision,
            }
        )
        weight = f"{format_bytes(num_bytes)} {dtype.name}"
        others = ", ".join(entry.aliases[:2])
        shown.append((entry.name, f"{entry.parameters:,}", format_count(entry.parameters), weight, others))
    if not rows:
        return rows, [f"No bundled model has {search!r} in its names; ORG/NAME of the Hub and files can be asked for."]
    return rows, table(shown, "<>>><", indent=0)


def style_of() -> Style:
    """How the terminal shows text."""
    from weigh.cli.weighing import style

    return style()
