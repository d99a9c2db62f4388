"""`weigh snapshot FILE.pickle`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from weigh import api
from weigh.cli import sentence
from weigh.cli.options import COMPARING, Parser, add_settings, explain_settings, read_settings
from weigh.cli.weighing import MODEL, style
from weigh.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence


def answer(command: str, words: Sequence[str]) -> tuple[str, int]:
    """The answer, and the exit code."""
    from weigh.recipes.settings import settings
    from weigh.recipes.training import Training

    parser = Parser(command, f"{sentence(command)} Nothing in the file is executed.")
    parser.add_argument("file", metavar="FILE", help="what torch.cuda.memory._dump_snapshot wrote")
    parser.add_argument("--number", metavar="N", help="the device's number, where several were recorded")
    parser.add_argument(
        "--model", metavar="MODEL", help=f"predict its training beside it ({MODEL}); its options follow"
    )
    parser.add_argument("--runtime", metavar="NAME", default="pytorch", help="the program that trained it")
    listed = [s for s in settings(Training) if s.field not in COMPARING]
    add_settings(parser, listed)
    found = parser.read(words)
    if found is None:
        explain_settings(parser, listed, Training)
        return parser.format_help(), 0
    report = _report(found, read_settings(found, listed))
    if found.json:
        return json.dumps(report.as_dict(), indent=2, ensure_ascii=False), 0
    return report.text(style()), 0


def _report(found: Any, given: dict[str, Any]) -> Any:
    from weigh.report.snapshot import SnapshotReport
    from weigh.trace.snapshot import read_snapshot

    if given and found.model is None:
        raise UsageError(f"{next(iter(given))} is said of no model", where="--model", hint="Name the model too.")
    snapshots = {s.device: s for s in read_snapshot(found.file)}
    number = next(iter(snapshots)) if found.number is None else found.number
    chosen = next((s for key, s in snapshots.items() if str(key) == str(number)), None)
    if chosen is None:
        known = ", ".join(map(str, snapshots))
        raise UsageError(f"nothing was recorded of device {number}", where="--number", hint=f"Recorded: {known}.")
    predicted = None
    if found.model is not None:
        replayed = api.train(found.model, None, found.runtime, **given).replayed
        predicted = {"allocated": replayed.allocated, "reserved": replayed.reserved}
    return SnapshotReport(found.file, chosen, predicted)
