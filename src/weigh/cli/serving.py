"""`weigh serve`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from weigh import api
from weigh.cli import ranges, sentence
from weigh.cli.options import Parser, add_settings, explain_settings, read_settings
from weigh.cli.weighing import MODEL, save, style
from weigh.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

RUNTIME = "vllm"
"""Where nobody says."""


def answer(command: str, words: Sequence[str]) -> tuple[str, int]:
    """The answer, and its exit code."""
    from weigh.recipes.settings import settings
    from weigh.runtimes import engine
    from weigh.runtimes.engine import ServeJob

    at = list(words).index("--") if "--" in words else len(words)
    words, line = words[:at], list(words[at + 1 :])
    runtime = _runtime(words) or _runtime_of(line) or RUNTIME
    program, _ = engine.named(runtime)
    parser = Parser(command, sentence(command))
    parser.add_argument(
        "model", metavar="MODEL", help=f"{MODEL}; or `-- COMMAND ...`, as the engine is started", nargs="?"
    )
    parser.add_argument("--explain", action="store_true", help="the working: rules, sources, assumptions")
    what = f"the program that serves it: {', '.join(engine.ENGINES)}, or with its release, NAME@VERSION"
    parser.add_argument("--runtime", metavar="NAME", help=what)
    what = "on which device (`weigh devices`), or N of them; exit 1 if no fit. Several, as NAME,NAME: a table of each"
    parser.add_argument("--device", metavar="NAME[xN]", help=what)
    parser.add_argument("--draft", metavar="MODEL", help="a draft model for speculative decoding")
    parser.add_argument("--advise", action="store_true", help="which quantization to choose for the device")
    parser.add_argument("--picture", metavar="FILE", help="draw contexts and users as an SVG heat map into a file")
    parser.add_argument("--csv", metavar="FILE", help="write every cell of a table into a file")
    common, own = settings(ServeJob), settings(program.options)
    add_settings(parser, common)
    add_settings(parser, own)
    found = parser.read(words)
    if found is None:
        explain_settings(parser, common, ServeJob)
        explain_settings(parser, own, program.options)
        return parser.format_help(), 0
    if ranges.several(found.device, found.context, found.concurrency) or found.csv is not None:
        return _grid(found, line, read_settings(found, [s for s in (*common, *own) if s.name not in ranges.NAMES]))
    given = read_settings(found, [*common, *own])
    report = api.serve(found.model, found.device, found.runtime, found.draft, line or None, **given)
    if found.advise and report.verdict is None:
        raise UsageError("there is no device to choose for", where="--advise", hint="Name one with --device.")
    if found.picture is not None:
        save(found.picture, report.svg())
    code = 1 if report.verdict == "no" else 0
    if found.json:
        advice = {"choices": [one.as_dict() for one in report.choices]} if found.advise else {}
        return json.dumps({**report.as_dict(), **advice}, indent=2, ensure_ascii=False), code
    if found.advise:
        return report.advice(style()), 0 if any(one.fits for one in report.choices) else 1
    return report.text(style(), found.explain), code


def _grid(found: Any, line: Sequence[str], given: dict[str, Any]) -> tuple[str, int]:
    """A table over devices, contexts and users."""
    if found.advise:
        raise UsageError("advice is for one device, one context and one number of users", where="--advise")
    contexts = ranges.numbers(found.context, "--context")
    users = ranges.numbers(found.concurrency, "--concurrency") or (1,)
    devices = found.device.split(",") if found.device else ()
    if not all(devices):
        raise UsageError(
            f"{found.device!r} names nothing between two commas", where="--device", hint="Write NAME,NAME."
        )
    grid = api.serve_grid(found.model, devices, contexts, users, found.runtime, found.draft, line or None, **given)
    if found.picture is not None:
        save(found.picture, grid.svg())
    if found.csv is not None:
        save(found.csv, grid.csv())
    code = 0 if grid.fits else 1
    if found.json:
        return json.dumps(grid.as_dict(), indent=2, ensure_ascii=False), code
    return grid.text(style(), found.explain), code


def _runtime_of(line: Sequence[str]) -> str | None:
    """The program that a command line starts."""
    if not line:
        return None
    from weigh.jobs import commands

    return commands.read(line).engine


def _runtime(words: Sequence[str]) -> str | None:
    """The program that is named: its own settings are options too."""
    for index, word in enumerate(words):
        if word.startswith("--runtime="):
            return word.partition("=")[2]
        if word == "--runtime" and index + 1 < len(words):
            return words[index + 1]
    return None
