"""`weigh validate ROWS.jsonl`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from weigh.cli import sentence
from weigh.cli.options import Parser
from weigh.report.header import header

if TYPE_CHECKING:
    from collections.abc import Sequence


def answer(command: str, words: Sequence[str]) -> tuple[str, int]:
    """The answer, and the exit code: 0 however far predictions are from references."""
    parser = Parser(command, sentence(command))
    parser.add_argument("rows", metavar="ROWS.jsonl", help="one recorded run or measured case a line")
    found = parser.read(words)
    if found is None:
        return parser.format_help(), 0
    from weigh.validate import validate

    report = validate(found.rows)
    if found.json:
        return json.dumps({**header(command), **report.as_dict()}, indent=2, ensure_ascii=False), 0
    return report.text(), 0
