"""`weigh trace` and `weigh measure`: real PyTorch, fake or real tensors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from weigh.cli import sentence
from weigh.cli.options import COMPARING, Parser, add_settings, explain_settings, read_settings
from weigh.cli.weighing import MODEL, save, style
from weigh.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

SAYS = {
    "trace": "Runs the model's real code in PyTorch on fake tensors, without a GPU, and lays the prediction beside it.",
    "measure": "Runs the model for real, on the GPU if there is one, and lays the prediction beside what was measured.",
}


def answer(command: str, words: Sequence[str]) -> tuple[str, int]:
    """The answer of one command, and its exit code."""
    from weigh.measure.process import TIMEOUT
    from weigh.measure.witness import RECIPES
    from weigh.recipes.settings import settings

    task = _task(words)
    if task not in RECIPES:
        raise UsageError(f"there is no task {task!r}", where="--task", hint="Use train or generate.")
    recipe = RECIPES[task]
    parser = Parser(command, f"{sentence(command)} {SAYS[command]} Needs weigh[torch].")
    parser.add_argument("model", metavar="MODEL", help=f"{MODEL}; or module:function")
    parser.add_argument("--task", default="train", metavar="train|generate", help="what to run; its options follow")
    parser.add_argument("-o", "--output", metavar="FILE", help="save the trace (compressed where it ends in .gz)")
    parser.add_argument("--svg", metavar="FILE", help="draw prediction and trace side by side into a file")
    parser.add_argument("--timeout", metavar="SECONDS", default=str(TIMEOUT), help="how long a run may take")
    if command == "measure":
        parser.add_argument("--snapshot", metavar="FILE", help="CUDA's own record, for PyTorch's memory visualizer")
        parser.add_argument("--case", metavar="FILE", help="append the run to a file of measured cases (JSON lines)")
    listed = [s for s in settings(recipe) if s.field not in COMPARING]
    add_settings(parser, listed)
    found = parser.read(words)
    if found is None:
        explain_settings(parser, listed, recipe)
        return parser.format_help(), 0
    return _run(command, found, read_settings(found, listed))


def _task(words: Sequence[str]) -> str:
    """The task decides which options there are."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "--task":
            return following
        if word.startswith("--task="):
            return word.partition("=")[2]
    return "train"


def _run(command: str, found: Any, given: dict[str, Any]) -> tuple[str, int]:
    from weigh.measure import witness

    timeout = float(_number(found.timeout.removesuffix(".0"), "--timeout"))
    if command == "trace":
        report = witness.trace(found.model, found.task, timeout, **given)
    else:
        report = witness.measure(found.model, found.task, timeout, found.snapshot, **given)
        if found.case is not None:
            from weigh.measure.case import append, of_report

            append(of_report(report), found.case)
    if found.output is not None:
        witness.save_trace(report, found.output)
    if found.svg is not None:
        comparison = report.comparison()
        save(found.svg, report.svg() if comparison is None else comparison.svg())
    if found.json:
        return json.dumps(report.as_dict(), indent=2, ensure_ascii=False), 0
    return report.text(style()), 0


def _number(word: str, where: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise UsageError(f"{word!r} is no whole number", where=where, hint="Give one from 1 on.")
    return int(word)
