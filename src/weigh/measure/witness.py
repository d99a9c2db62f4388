"""`trace` and `measure`: real PyTorch asked what a run allocates, and the answer beside the prediction.

Loads no PyTorch: that happens in a process of its own (`weigh.measure.process`).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from weigh import api
from weigh.errors import NotModelledError, UnknownNameError, UsageError, WeighError
from weigh.measure import requirements
from weigh.measure.job import FAKE, REAL, Answer, Job, words
from weigh.measure.process import TIMEOUT, Process, run_ranks
from weigh.recipes import generation, trained
from weigh.recipes.generation import Generation
from weigh.recipes.settings import make
from weigh.recipes.training import Training
from weigh.records import dataclass, replace
from weigh.report.assumption import Assumption
from weigh.report.parts import Parts
from weigh.report.run import RunReport
from weigh.report.text import PLAIN, Style, exactly, table, wrap
from weigh.report.traces import TracesReport
from weigh.sources.source import Source
from weigh.trace.compare import compare
from weigh.trace.events import LOAD, Trace
from weigh.trace.file import load, save
from weigh.trace.peak import phase_peaks
from weigh.units import format_bytes

Recipe = Training | Generation

RECIPES: dict[str, type[Training | Generation]] = {"train": Training, "generate": Generation}

_FUNCTION = re.compile(r"[\w.]+:\w+")
"""`module:function`; a path or a model's name has no such colon."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A run of real PyTorch, in the place of a prediction's."""

    recipe: Any
    trace: Trace
    parameters: tuple[()] = ()


@dataclass(frozen=True, eq=False, repr=False)
class WitnessReport(RunReport):
    """What real PyTorch did, and what was predicted."""

    run: Recorded  # type: ignore[assignment]
    job: Job
    """What was asked."""
    answers: tuple[Answer, ...]
    """What the process said that recorded the trace, by rank."""
    counted: tuple[Answer, ...]
    """What the processes said in which only the allocator counted, by rank; none for fake tensors."""
    others: tuple[Trace, ...] = ()
    """The traces of the ranks after the first."""

    doing: ClassVar[str] = "Running"

    @property
    def how(self) -> str:
        """On what it ran."""
        if self.job.tensors == FAKE:
            return "traced on fake CUDA tensors" if self.job.device == "cuda" else "traced on fake CPU tensors"
        if self.job.device == "cpu":
            return f"measured on the CPU in {self.job.world} processes" if self.job.world > 1 else "measured on the CPU"
        return f"measured on {self.counted[0].device_name}"

    @property
    def measured_peak(self) -> int:
        """The figure to believe: what the allocator counted where something was real, else what the trace shows."""
        peaks = [row["peak"] for answer in self.counted for row in answer.peaks if row["phase"] != LOAD]
        return max(peaks) if peaks else self.memory.peak

    # -- the prediction
    @cached_property
    def prediction(self) -> Trace | WeighError:
        """The same run on ghost tensors; an error where it cannot be predicted."""
        return self._predict(traced=True)

    @cached_property
    def prediction_unwatched(self) -> Trace | WeighError:
        """The same as it is without a dispatch mode: what the allocator's own account is compared with."""
        return self._predict(traced=False)

    def _predict(self, traced: bool) -> Trace | WeighError:
        if self.job.config is None:
            return NotModelledError("a function's model", hint="Only configs are predicted.")
        recipe = replace(self.run.recipe, traced=traced)
        try:
            if isinstance(recipe, Training):
                return trained.run(self.job.config, recipe).trace
            return generation.run(self.job.config, recipe).trace
        except WeighError as error:
            return error

    def comparison(self) -> TracesReport | None:
        """Prediction and trace, side by side; None where there is no prediction."""
        if isinstance(self.prediction, WeighError):
            return None
        return TracesReport.of(self.prediction, self.run.trace, ("predicted", "traced"), self.parts)

    # -- answers
    def phases(self) -> list[dict[str, Any]]:
        """Every phase after loading: peaks as predicted, as traced, and as the allocator counted; bytes or None."""
        traced = [p for p in phase_peaks(self.run.trace) if p.mark.phase != LOAD]
        counted = [p for p in self.counted[0].peaks if p["phase"] != LOAD] if self.counted else [{}] * len(traced)
        predicted: list[Any] = [None] * len(traced)
        trace = self.prediction_unwatched if self.counted else self.prediction
        if isinstance(trace, Trace):
            found = [p for p in phase_peaks(trace) if p.mark.phase != LOAD]
            predicted = [p.peak for p in found] if len(found) == len(traced) else predicted
        return [
            {
                "round": t.mark.round,
                "phase": t.mark.phase,
                "predicted_bytes": p,
                "traced_bytes": t.peak,
                "measured_bytes": c.get("peak"),
                "reserved_bytes": c.get("reserved"),
            }
            for t, c, p in zip(traced, counted, predicted, strict=True)
        ]

    def summary(self) -> str:
        said = [self.how, f"{self.answers[0].parameters:,} parameters"]
        if self.job.world > 1:
            said.append(f"rank {self.run.recipe.rank} of {self.job.world}")
        said += [f"{name} {version}" for name, version in self.answers[0].versions.items()]
        said += [f"{kernel} attention, {count} calls" for kernel, count in self.answers[0].attention.items()]
        return " · ".join(said)

    def shown_round(self) -> int | None:
        return self.memory.highest.mark.round if isinstance(self.run.recipe, Training) else None

    def chart_title(self) -> str:
        return f"Memory over the run: the peak is {self.where()}"

    def text(self, style: Style = PLAIN, by: str = "purpose", explain: bool = False) -> str:
        """The figures, what they are made of, and how far the prediction is from them."""
        from weigh.report.chart import stacked_bar

        verb = "trained" if self.job.task == "train" else "generated"
        lines = [
            style.bold(f"{self.source.name} {verb}, {self.how}: {exactly(self.measured_peak)} at the peak"),
            *(style.dim(line) for line in wrap(self.summary(), style.width)),
            "",
            *stacked_bar(self.memory.by_purpose(), style),
            "",
            *self._phase_table(),
        ]
        for line in self._opaque():
            lines += ["", *wrap(line, style.width)]
        lines += ["", *self._verdict(style)]
        return "\n".join(lines)

    def _phase_table(self) -> list[str]:
        rows = self.phases()
        rounding = ", before rounding to 512" if self.memory.rounded else ""
        columns = [c for c in ("predicted", "traced", "measured", "reserved") if any(r[f"{c}_bytes"] for r in rows)]
        shown = [("round", "phase", *columns)]
        kept = rows if len(rows) <= 12 else [*rows[:4], *rows[-2:]]
        for row in kept:
            cells = ("-" if row[f"{c}_bytes"] is None else f"{row[f'{c}_bytes']:,}" for c in columns)
            shown.append((str(row["round"] + 1), row["phase"], *cells))
        return [f"Peaks in bytes{rounding}, phase by phase:", *table(shown, "<<" + ">" * len(columns))]

    def _opaque(self) -> list[str]:
        found = self.answers[0].opaque
        if not found:
            return []
        names = ", ".join(f"{name} ({count} times)" for name, count in sorted(found.items()))
        unseen = "what they allocate inside is in no figure here" if not self.counted else "the trace does not show it"
        if self.counted:
            unseen += ", the measured figures do"
        return [f"Opaque: {names}: PyTorch does not show what these allocate inside; {unseen}."]

    def _verdict(self, style: Style) -> list[str]:
        found = self.prediction
        if isinstance(found, WeighError):
            return wrap(f"No prediction: {found}", style.width)
        comparison = compare(found, self.run.trace, ("predicted", "traced"), loading=False)
        parting = comparison.parting
        lines = []
        if self.counted:
            unwatched = self.prediction_unwatched
            assert isinstance(unwatched, Trace)
            ours = max(int(p.peak) for p in phase_peaks(unwatched) if p.mark.phase != LOAD)  # type: ignore[arg-type]
            lines.append(_off("measured", ours, self.measured_peak))
        lines.append(_off("traced", comparison.peak.left or 0, comparison.peak.right or 0))
        if parting is None:
            return [*lines, "After loading the two traces do the same, event by event."]
        where = f"They part at event {parting.event:,}, in {parting.phase}:"
        return [*lines, where, f"  predicted: {parting.left}", f"  traced:    {parting.right}"]

    def as_dict(self, by: str | None = None) -> dict[str, Any]:
        """For JSON, by `docs/schema/witness.json`."""
        from weigh.report.header import header

        comparison = self.comparison()
        failed = self.prediction if isinstance(self.prediction, WeighError) else None
        return {
            **header("witness", self.source, getattr(self.run.recipe, "dtype", None)),
            "how": self.how,
            "job": {k: v for k, v in self.job.as_dict().items() if k not in ("config", "output", "snapshot")},
            "versions": self.answers[0].versions,
            "parameters": {"total": self.answers[0].parameters, "trainable": self.answers[0].trainable},
            "peak": {"bytes": self.measured_peak, "traced": self.memory.as_dict()},
            "phases": self.phases(),
            "ranks": [
                {"traced_peak_bytes": _highest(trace), "measured": counted.peaks if counted else None}
                for trace, counted in zip(
                    (self.run.trace, *self.others), self.counted or (None,) * (1 + len(self.others)), strict=True
                )
            ],
            "opaque": self.answers[0].opaque,
            "collectives": self.answers[0].collectives,
            "attention": self.answers[0].attention,
            "comparison": comparison and _bare(comparison.as_dict()),
            "not_predicted": failed and str(failed),
        }


def _bare(document: dict[str, Any]) -> dict[str, Any]:
    """Without the header."""
    return {key: value for key, value in document.items() if key not in ("schema", "version")}


def _off(what: str, ours: int, real: int) -> str:
    gap = ours - real
    relative = f"{100 * gap / real:+.4f} %" if real else "-"
    return f"Predicted peak {format_bytes(ours)}: {gap:+,} bytes ({relative}) beside the {what} one."


def _highest(trace: Trace) -> int:
    return max(int(p.peak) for p in phase_peaks(trace))  # type: ignore[arg-type]


def trace(source: Any, task: str = "train", timeout: float = TIMEOUT, **settings: Any) -> WitnessReport:
    """Run a model on fake tensors, in a process of its own, and record what it allocates.

    `source` is a model as `weigh.model` takes it, of any kind that transformers knows, or "module:function" (see
    `weigh.measure.workload.from_function`). The settings are those of `weigh.train` or `weigh.generate`.

    Raises:
        InputError: PyTorch is missing or of another release, or the model cannot be traced; the process died.
        UsageError: there is no such setting, or it cannot have that value.
    """
    job, found, recipe = _job(source, task, {**settings, **({"bare": True} if task == "generate" else {})})
    requirements.check(fake_cuda=recipe.device == "cuda", also=_also(recipe))
    job = replace(job, tensors=FAKE)
    with tempfile.TemporaryDirectory() as folder, Process(timeout) as process:
        job = replace(job, output=f"{folder}/run.trace")
        answer = process.ask(job)
        recorded, _ = load(str(job.output))
    return _report(job, found, recipe, [recorded], [answer], [])


def measure(
    source: Any,
    task: str = "train",
    timeout: float = TIMEOUT,
    snapshot: str | None = None,
    **settings: Any,
) -> WitnessReport:
    """Run a model for real, twice: once with nothing but the allocator counting, once recorded.

    On the CPU PyTorch's profiler counts, on a GPU its counters do; `snapshot` is a file
    for CUDA's own record. Where `kernels` is not given, the GPU is taken if there is one. A mesh of several devices
    starts as many processes.

    Raises:
        InputError: PyTorch is missing, the model cannot be run, or a process died.
        UsageError: there is no such setting, or it cannot have that value; there is no GPU.
    """
    requirements.check()
    if not settings.get("kernels"):
        settings["kernels"] = "cuda" if _has_gpu() else "cpu"
    if settings["kernels"] == "cuda" and task == "train":
        settings.setdefault("steps", 3)  # one to warm up, two to measure
    job, found, recipe = _job(source, task, settings)
    requirements.check(also=_also(recipe))
    job = replace(job, tensors=REAL)
    with tempfile.TemporaryDirectory() as folder, Process(timeout) as process:
        ask: Callable[[Job], list[Answer]] = (
            (lambda j: run_ranks(j, timeout)) if job.world > 1 else (lambda j: [process.ask(j)])
        )
        counted = ask(replace(job, profiled=True, snapshot=snapshot))
        job = replace(job, output=f"{folder}/run.trace")
        answers = ask(job)
        files = sorted(Path(folder).iterdir())
        recorded = [load(str(file))[0] for file in files]
    return _report(job, found, recipe, recorded, answers, counted)


def _has_gpu() -> bool:
    """Whether the driver shows a device; PyTorch itself is asked later, in its own process."""
    return Path("/dev/nvidia0").exists()


def _also(recipe: Any) -> tuple[str, ...]:
    adapters = ("peft",) if getattr(recipe, "tuned", None) is not None else ()
    return (*adapters, "bitsandbytes") if getattr(recipe, "optimizer", None) == "adamw_8bit" else adapters


def _job(source: Any, task: str, settings: Mapping[str, Any]) -> tuple[Job, Source, Recipe]:
    if task not in RECIPES:
        raise UsageError(f"there is no task {task!r}", where="task", hint="Use train or generate.")
    kind = RECIPES[task]
    given = {name: value for name, value in settings.items() if value is not None}
    if isinstance(source, str) and _FUNCTION.fullmatch(source) and not Path(source).exists():
        if task != "train":
            raise UsageError("a function makes a model to train", where="task", hint="Leave the task out.")
        made = sorted({"batch", "sequence", "target", "dtype", "attention"} & set(given))
        if made:
            raise UsageError("is the function's to decide", where=made[0], hint="Leave it out.")
        recipe: Any = make(kind, given)
        found = Source(source, {"model_type": None}, "a function", source)
        return Job(task, words(recipe), function=source, device=recipe.device), found, recipe
    from weigh.report.defaults import complete

    found = _source(source)
    completed, _ = complete(found, given, "sequence" if task == "train" else "prompt")
    recipe = make(kind, completed)
    job = Job(task, words(recipe), config=dict(found.config), device=recipe.device)
    return job, found, recipe


def _source(source: Any) -> Source:
    """A model, whether or not `weigh` knows its family: transformers may."""
    try:
        return api.model(source)
    except UnknownNameError as error:
        if error.kind != "model_type":
            raise
        return api.unchecked(source)


def _parts(source: Source) -> Parts:
    """Which module is what, where the family is known."""
    try:
        return api.parts(source)
    except WeighError:
        return Parts(None)


def _report(
    job: Job, source: Source, recipe: Recipe, traces: list[Trace], answers: list[Answer], counted: list[Answer]
) -> WitnessReport:
    opaque: tuple[Assumption, ...] = ()
    return WitnessReport(
        source,
        Recorded(recipe, settled(traces[0])),
        _parts(source),
        None,
        opaque,
        job,
        tuple(answers),
        tuple(counted),
        tuple(traces[1:]),
    )


def settled(trace: Trace) -> Trace:
    """A trace without what was born and died while the model was made, which depends on from where it is loaded."""
    bound = next((m.event for m in trace.marks if m.phase != LOAD), 0)
    dead = {-event for event in trace.events[:bound] if event < 0}
    kept = [event for event in trace.events[:bound] if abs(event) not in dead]
    shift = bound - len(kept)
    marks = [replace(m, event=max(0, m.event - shift) if m.phase != LOAD else 0) for m in trace.marks]
    return Trace(trace.allocations, [*kept, *trace.events[bound:]], marks)


def save_trace(report: WitnessReport, path: str) -> None:
    """Write the trace of the first rank, with the job and the versions beside it.

    Raises:
        UsageError: the file cannot be written.
    """
    job = {k: v for k, v in report.job.as_dict().items() if k not in ("output", "snapshot")}
    save(report.run.trace, path, {"model": report.source.name, "how": report.how, "job": job,
                                  "versions": report.answers[0].versions})  # fmt: skip
