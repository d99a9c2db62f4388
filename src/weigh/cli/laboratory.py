"""`weigh lab train`: techniques at work in real trainings."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from weigh.cli.options import Parser
from weigh.cli.weighing import save, style
from weigh.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from weigh.lab.report import LabReport, Line
    from weigh.lab.techniques import Technique

_HELP = """\
usage: weigh lab train ...

  train    trains a small model once for every technique, and lays memory and loss side by side

weigh lab train --help lists its options.
"""
SIZES = ("layers", "hidden", "heads", "sequence", "batch", "steps", "seed")
SAYS = (
    "Trains a small GPT or Llama on real text, on this machine's CPU, once for every technique, and says of each what "
    "it does to memory (predicted and measured), to the loss on held-out text, and to the time. Needs weigh[torch]."
)


def answer(command: str, words: Sequence[str]) -> tuple[str, int]:
    """The answer, and the exit code."""
    if not words or words[0] in ("-h", "--help"):
        return _HELP, 0
    if words[0] != "train":
        raise UsageError(f"there is no {words[0]!r}", where=command, hint="There is `weigh lab train`.")
    return _train(words[1:])


def _train(words: Sequence[str]) -> tuple[str, int]:
    from weigh.lab.bench import MODELS, SUITES, bench
    from weigh.lab.run import FOLDER, train
    from weigh.lab.techniques import TECHNIQUES

    parser = Parser("lab train", SAYS)
    add = parser.add_argument
    add("--suite", default="quick", metavar="|".join(SUITES), help="sizes and steps, where nothing else is said")
    names = ", ".join(TECHNIQUES)
    add("--technique", metavar="NAME[,NAME...]", help=f"these only, and those that they begin with: {names}")
    add("--model", metavar="|".join(MODELS), help="what is trained")
    for name in SIZES:
        add(
            f"--{name}",
            metavar="N",
            help=f"default: {getattr(SUITES['quick'], name)}, full {getattr(SUITES['full'], name)}",
        )
    add("--text", metavar="FILE", help="what is trained on, byte by byte; default: the standard library's sources")
    add("--out", metavar="DIR", default=FOLDER, help=f"where results and weights are kept (default: {FOLDER})")
    add("--resume", action="store_true", help="go on with the run that is kept there")
    add("--explain", action="store_true", help="what the peaks are made of, and what each technique does")
    add("--html", metavar="FILE", help="write the report as a page with pictures")
    add("--memory-svg", metavar="FILE", help="draw the peaks, predicted above measured, into a file")
    add("--losses-svg", metavar="FILE", help="draw the losses into a file")
    found = parser.read(words)
    if found is None:
        return parser.format_help(), 0
    sizes = {name: _number(getattr(found, name), f"--{name}") for name in SIZES}
    chosen = bench(found.suite, model=found.model, **sizes)
    names_asked = tuple(found.technique.split(",")) if found.technique else ()
    report = train(chosen, names_asked, found.text, found.out, found.resume, Bars(sys.stderr))
    _draw(found, report)
    if found.json:
        return json.dumps(report.as_dict(), indent=2, ensure_ascii=False), 0
    return report.text(style(), found.explain), 0


def _draw(found: Any, report: LabReport) -> None:
    from weigh.lab import page, picture

    for file, drawn in (
        (found.html, page.page),
        (found.memory_svg, picture.memory),
        (found.losses_svg, picture.losses),
    ):
        if file is not None:
            save(file, drawn(report))


def _number(word: str | None, where: str) -> int | None:
    if word is None:
        return None
    if not word.isdecimal():
        raise UsageError(f"{word!r} is no whole number", where=where, hint="Write digits.")
    return int(word)


class Bars:
    """A bar for each technique on a terminal, a line for each elsewhere."""

    WIDTH = 24

    def __init__(self, out: Any) -> None:
        self.out = out
        self.on_terminal = bool(out.isatty())
        self.shown = 0.0
        self.label = ""

    def begins(self, technique: Technique, number: int, of: int) -> None:
        """A technique is next."""
        self.label = f"{number:2}/{of} {technique.name:17}"
        self.shown = 0.0
        if self.on_terminal:
            self._over("measuring its memory")

    def step(self, done: int, of: int, loss: float) -> None:
        """It has taken so many steps; drawn ten times a second at most."""
        now = time.monotonic()
        if self.on_terminal and (now - self.shown > 0.1 or done == of):
            self.shown = now
            filled = self.WIDTH * done // of
            self._over(f"{'█' * filled}{'░' * (self.WIDTH - filled)} {done}/{of}  loss {loss:.3f}")

    def ends(self, technique: Technique, line: Line, kept: bool) -> None:
        """It is done."""
        from weigh.lab.words import percent

        if line.refused is not None:
            said = f"not run: {line.refused}"
        else:
            said = f"loss {line.before:.3f} -> {line.loss:.3f}, peak off by {percent(line.error)}"
        self._over(f"{said}{' (kept)' if kept else ''}")
        self.out.write("\n")
        self.out.flush()

    def _over(self, text: str) -> None:
        clear = "\r\x1b[K" if self.on_terminal else ""
        self.out.write(f"{clear}{self.label} {text}")
        self.out.flush()
