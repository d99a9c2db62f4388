"""`weigh compare A B`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from weigh import api, jobs
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
    parser.add_argument("a", metavar="A", help=f"{MODEL}; a recipe, or the file of a saved trace")
    parser.add_argument("b", metavar="B", help="another")
    parser.add_argument("--dtype", help="weigh both in this number format instead of their own")
    parser.add_argument("--svg", metavar="FILE", help="draw two traces or trainings into a file")
    values = "compare the values of two checkpoints, tensor by tensor, however each is stored (weigh[lab])"
    parser.add_argument("--values", action="store_true", help=values)
    found = parser.read(words)
    if found is None:
        return parser.format_help(), 0
    if found.values:
        return _values(found)
    report: Any = _report(found)
    if found.json:
        return json.dumps(report.as_dict(), indent=2, ensure_ascii=False), 0
    return (report.text() if is_trace(found.a) else report.text(style())), 0


def _report(found: Any) -> Any:
    if is_trace(found.a) or is_trace(found.b):
        return _traces(found)
    trainings = [jobs.describes_training(path) for path in (found.a, found.b)]
    if not any(trainings):
        return _models(found)
    if not all(trainings):
        other = found.b if trainings[0] else found.a
        raise UsageError(f"{other} describes no training", where="compare", hint="Give two recipes, or two models.")
    return _trainings(found)


def _trainings(found: Any) -> Any:
    if found.dtype is not None:
        raise UsageError("recipes say their dtypes", where="--dtype", hint="Leave it out.")
    report = api.compare_trainings(found.a, found.b)
    if found.svg is not None:
        save(found.svg, report.svg())
    return report


def _values(found: Any) -> tuple[str, int]:
    from weigh import quant

    quant.require()
    from weigh.quant.checkpoint.differing import difference

    report = difference(found.a, found.b)
    return (json.dumps(report.as_dict(), indent=2) if found.json else report.text(style())), 0


def _models(found: Any) -> Any:
    if found.svg is not None:
        raise UsageError("there is a picture of two traces or trainings only", where="--svg", hint="Leave it out.")
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
