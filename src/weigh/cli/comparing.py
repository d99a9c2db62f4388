"""`weigh compare A B`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from weigh import api
from weigh.cli import COMMANDS
from weigh.cli.options import Parser
from weigh.cli.weighing import MODEL, style

if TYPE_CHECKING:
    from collections.abc import Sequence


def answer(command: str, words: Sequence[str]) -> tuple[str, int]:
    """The answer, and the exit code."""
    parser = Parser(command, f"{COMMANDS[command][1].capitalize()}.")
    parser.add_argument("a", metavar="A", help=MODEL)
    parser.add_argument("b", metavar="B", help="another")
    parser.add_argument("--dtype", help="weigh both in this number format instead of their own")
    found = parser.read(words)
    if found is None:
        return parser.format_help(), 0
    report = api.compare(found.a, found.b, found.dtype)
    if found.json:
        return json.dumps(report.as_dict(), indent=2, ensure_ascii=False), 0
    return report.text(style()), 0
