"""The techniques one after the other, each in a process of PyTorch; what is done is kept, and not done again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from weigh import __version__
from weigh.errors import InputError, UsageError, WeighError
from weigh.lab import loops
from weigh.lab.bench import Bench
from weigh.lab.report import LabReport, Line
from weigh.lab.task import PROGRESS, Task
from weigh.lab.techniques import TEACHER, TECHNIQUES, Technique, chosen
from weigh.lab.text import Text, read
from weigh.measure import requirements
from weigh.measure.job import words
from weigh.measure.process import TIMEOUT, Process, exchange_ranks, read_answer
from weigh.trace.file import load

WORKER = "weigh.lab.real.worker"
FOLDER = "weigh-lab"
"""Where a run is kept, if nothing else is said."""
_SETTINGS = "bench.json"


class Progress(Protocol):
    """Told how far a run has come."""

    def begins(self, technique: Technique, number: int, of: int) -> None:
        """A technique is next."""

    def step(self, done: int, of: int, loss: float) -> None:
        """It has taken so many steps."""

    def ends(self, technique: Technique, line: Line, kept: bool) -> None:
        """It is done; `kept`: it was done before."""


class Quiet:
    """Says nothing."""

    def begins(self, technique: Technique, number: int, of: int) -> None:
        pass

    def step(self, done: int, of: int, loss: float) -> None:
        pass

    def ends(self, technique: Technique, line: Line, kept: bool) -> None:
        pass


QUIET = Quiet()


def train(
    bench: Bench,
    names: tuple[str, ...] = (),
    text: str | None = None,
    folder: str | os.PathLike[str] = FOLDER,
    resume: bool = False,
    progress: Progress = QUIET,
    timeout: float = TIMEOUT,
) -> LabReport:
    """Train the bench's model once for every technique, and lay what was measured beside what is predicted.

    `names` are techniques (none: all); those that they begin with or are compared with are run too. `folder` keeps
    results and weights; with `resume`, what it has is not done again.

    Raises:
        InputError: PyTorch is missing, the text cannot be used, or a process died.
        UsageError: there is no such technique, or the folder has a run already.
    """
    wanted = chosen(names)
    requirements.check()
    found = read(text, bench.sequence)
    kept = Path(folder)
    _prepare(kept, bench, found, resume)
    lines: dict[str, Line] = {}
    with Process(timeout, WORKER, heard=_listener(bench, progress)) as process:
        for number, technique in enumerate(wanted):
            progress.begins(technique, number + 1, len(wanted))
            file = kept / f"{technique.name}.json"
            before = file.exists()
            if before:
                line = Line.of(json.loads(file.read_text(encoding="utf-8")))
            else:
                line = _one(technique, bench, kept, lines, process, timeout)
                _write(file, line.as_dict())
            lines[technique.name] = line
            progress.ends(technique, line, before)
    return LabReport(bench, found.as_dict(), tuple(lines.values()))


def _prepare(folder: Path, bench: Bench, text: Text, resume: bool) -> None:
    """The folder with the run's settings and its text, or what it has if it is the same run.

    Raises:
        UsageError: it has another run, or has one and nobody said to go on with it; or it cannot be written.
    """
    settings = {"version": __version__, "bench": bench.as_dict(), "text": text.as_dict()}
    file = folder / _SETTINGS
    if file.exists():
        if not resume:
            hint = "Go on with it (--resume), or name another folder (--out)."
            raise UsageError("has a run already", where=str(folder), hint=hint)
        had = json.loads(file.read_text(encoding="utf-8"))
        for part, now in settings.items():
            if had.get(part) != now:
                raise UsageError(
                    f"has a run with another {_difference(part, had.get(part), now)}",
                    where=str(folder),
                    hint="Say the same again, or name another folder (--out).",
                )
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "training.bin").write_bytes(text.training)
        (folder / "held-out.bin").write_bytes(text.held_out)
        _write(file, settings)
    except OSError as error:
        hint = "Name a folder of yours (--out)."
        raise UsageError(f"cannot be written ({error.strerror})", where=str(folder), hint=hint) from None


def _difference(part: str, had: Any, now: Any) -> str:
    if isinstance(had, Mapping) and isinstance(now, Mapping):
        name = next(n for n in now if had.get(n) != now[n])
        return f"{part}: {name} was {had.get(name)}, and is {now[name]}"
    return f"{part}: it was {had}, and is {now}"


def _write(file: Path, document: Mapping[str, Any]) -> None:
    """Whole or not at all: a killed run leaves no half of an answer."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(document, indent=1), encoding="utf-8")
    part.replace(file)


def _listener(bench: Bench, progress: Progress) -> Callable[[str], None]:
    def heard(line: str) -> None:
        if line.startswith(PROGRESS):
            done, loss = json.loads(line.removeprefix(PROGRESS))
            progress.step(done, bench.steps, loss)

    return heard


def _one(
    technique: Technique,
    bench: Bench,
    folder: Path,
    lines: Mapping[str, Line],
    process: Process,
    timeout: float,
) -> Line:
    """Run one technique; what cannot be done says why.

    Raises:
        InputError: the process died.
    """
    for package in technique.needs:
        if find_spec(package) is None:
            return Line.refusal(technique, f"{package} is not installed: pip install {package}")
    for other in technique.wants:
        if lines[other].refused is not None:
            return Line.refusal(technique, f"it begins with {other}, which was not run")
    try:
        prediction = loops.predict(bench, technique)
    except WeighError as error:
        return Line.refusal(technique, str(error))
    task = task_of(technique, bench, folder)
    if technique.ranks > 1:
        answer = exchange_ranks(task.as_dict(), technique.ranks, timeout, WORKER, process.heard)[0]
    else:
        answer = process.exchange(task.as_dict())
    if "error" in answer:
        try:
            read_answer(answer)
        except UsageError as error:
            return Line.refusal(technique, str(error))
        except InputError as error:
            raise InputError(error.what, where=f"{technique.name}: {error.where}", hint=error.hint) from None
    recorded, _ = load(str(folder / f"{technique.name}.trace"))
    return Line.measured(technique, answer, prediction, recorded)


def task_of(technique: Technique, bench: Bench, folder: Path) -> Task:
    """What the process is asked to do for a technique."""
    begins = next((name for name in technique.wants if name != TEACHER), None)
    return Task(
        technique.name,
        technique.config(bench),
        words(technique.recipe(bench)),
        str(folder),
        bench.steps if technique.trains else 0,
        bench.batch,
        bench.seed,
        technique.rate,
        begins=begins,
        surgery=technique.surgery,
        int8=technique.int8,
        teacher=TECHNIQUES[TEACHER].config(bench) if TEACHER in technique.wants else None,
        keeps=any(technique.name in other.wants for other in TECHNIQUES.values()),
    )
