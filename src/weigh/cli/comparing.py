"""`weigh compare A B`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from weigh import api
from weigh.cli import sentence
from weigh.cli.options import Parser
from weigh.cli.weighing import MODEL, save, style
from weigh.errors import UsageError
from weigh.trace.file import is_trace

if TYPE_CHECKING:
    from collections.abc import Sequence


def answer(command: str, words: Sequence[str]) -> tuple[str, int]:
    """The answer, and the exit code."""
    parser = Parser(command, sentence(command))
    parser.add_argument("a", metavar="A", help=f"{MODEL}; or the file of a saved trace")
    parser.add_argument("b", metavar="B", help="another")
    parser.add_argument("--dtype", help="weigh both in this number format instead of their own")
    parser.add_argument("--svg", metavar="FILE", help="draw two traces into a file")
    found = parser.read(words)
    if found is None:
        return parser.format_help(), 0
    report: Any = _traces(found) if is_trace(found.a) or is_trace(found.b) else _models(found)
    if found.json:
        return json.dumps(report.as_dict(), indent=2, ensure_ascii=False), 0
    return (report.text() if is_trace(found.a) else report.text(style())), 0


def _models(found: Any) -> Any:
    if found.svg is not None:
        raise UsageError("there is a picture of two traces only", where="--svg", hint="Leave it out.")
    return api.compare(found.a, found.b, found.dtype)


def _traces(found: Any) -> Any:
    from weigh.report.traces import TracesReport
    from weigh.trace.file import load

    if found.dtype is not None:
        raise UsageError("traces are what they are", where="--dtype", hint="Leave it out.")
    report = TracesReport.of(load(found.a)[0], load(found.b)[0], (found.a, found.b))
    if found.svg is not None:
        save(found.svg, report.svg())
    return report
