"""`weigh rules [MODEL]`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from weigh.cli import sentence
from weigh.cli.options import Parser, add_settings, explain_settings, read_settings
from weigh.cli.weighing import MODEL, style
from weigh.errors import UsageError
from weigh.report.header import header
from weigh.report.text import table

if TYPE_CHECKING:
    from collections.abc import Sequence


def answer(command: str, words: Sequence[str]) -> tuple[str, int]:
    """The answer, and the exit code."""
    from weigh.recipes.settings import settings
    from weigh.recipes.training import Training

    parser = Parser(command, sentence(command))
    parser.add_argument("model", metavar="MODEL", nargs="?", help=f"{MODEL}; without one, the rules are listed")
    parser.add_argument(
        "--runtime", metavar="NAME", help="the program that trains it: pytorch, deepspeed, megatron, ..."
    )
    parser.add_argument("--rule", metavar="NAME[,NAME...]", help="these rules only")
    parser.add_argument("--explain", action="store_true", help="each rule's source, terms and limits")
    listed = settings(Training)
    add_settings(parser, listed)
    found = parser.read(words)
    if found is None:
        explain_settings(parser, listed, Training)
        return parser.format_help(), 0
    from weigh.rules import compare, rule

    names = [] if found.rule is None else found.rule.split(",")
    for name in names:
        rule(name)
    given = read_settings(found, listed)
    if found.model is None:
        if given or found.runtime:
            raise UsageError(
                "settings need a model", where=command, hint="Name one, or list the rules without settings."
            )
        return _list(names, found.json)
    report = compare(found.model, names, found.runtime, **given)
    if found.json:
        return json.dumps(report.as_dict(), indent=2, ensure_ascii=False), 0
    return report.text(style(), found.explain), 0


def _list(names: Sequence[str], as_json: bool) -> tuple[str, int]:
    from weigh.rules import RULES
    from weigh.rules.report import described

    rows = [described(RULES[name]) for name in names or RULES]
    if as_json:
        return json.dumps({**header("rules"), "rules": rows}, indent=2, ensure_ascii=False), 0
    shown = [("name", "what it answers", "formula"), *((r["name"], r["says"], r["formula"]) for r in rows)]
    return "\n".join([*table(shown, "<<<", indent=0), "", "weigh rules MODEL puts them beside the exact answers."]), 0
