"""What training takes: the peak of a step, the first and the steady one, and its arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from weigh.dtypes import INT64
from weigh.optimizers import implementation_of
from weigh.records import dataclass
from weigh.report.assumption import EXACT
from weigh.report.run import RunReport
from weigh.report.text import exactly, table, wrap
from weigh.report.work import flops_by_phase, format_flops
from weigh.units import format_bytes

if TYPE_CHECKING:
    from weigh.dims import Size
    from weigh.jobs import Job
    from weigh.plan import Outcome, Plan, Remedy
    from weigh.recipes.loop import StagePeak
    from weigh.recipes.trained import TrainingRun
    from weigh.recipes.training import Training
    from weigh.report.assumption import Assumption
    from weigh.report.pace import TrainingPace
    from weigh.runtimes.phases import JobPhase


@dataclass(frozen=True, eq=False, repr=False)
class TrainingReport(RunReport):
    """A training, weighed."""

    kind: ClassVar[str] = "train"
    doing: ClassVar[str] = "Training"
    run: TrainingRun
    runtime: str = "pytorch"
    """The program that trains, with its release where one was named."""
    named: str | None = None
    """What the model was called by whoever asked; None where it is no word."""
    job: Job | None = None
    """The files that said how, where there are any."""

    again: Callable[[Mapping[str, Any]], TrainingRun] | None = None
    """Runs the training with some settings changed."""

    around: Callable[[TrainingReport], tuple[JobPhase, ...]] | None = None
    """Weighs loading, an evaluation and a checkpoint."""

    by_stage: Callable[[], tuple[StagePeak, ...]] | None = None
    """Weighs every pipeline stage."""

    @cached_property
    def stages(self) -> tuple[StagePeak, ...]:
        """A steady step on each pipeline stage; none where there is one."""
        return () if self.by_stage is None else self.by_stage()

    @cached_property
    def job_phases(self) -> tuple[JobPhase, ...]:
        """What the program does around its steps, and the steps, each with its peaks on the device and on the host."""
        return () if self.around is None else self.around(self)

    @cached_property
    def plan(self) -> Plan | None:
        """What would make it fit, where it does not, or only might."""
        if self.again is None or self.fit is None or self.fit.verdict == "yes":
            return None
        from weigh.plan import search
        from weigh.report.fit import Fit

        again, device = self.again, self.fit.device

        def tried(changed: Mapping[str, Any]) -> Outcome:
            times = changed.get("accumulation", self.recipe.accumulation)
            return outcome(again({**changed, "accumulation": min(times, ALIKE)}))

        return search(self.recipe, outcome(self.run), tried, lambda peak: Fit(device, peak).verdict == "yes")

    @property
    def recipe(self) -> Training:
        """How it is trained."""
        return self.run.recipe

    @property
    def first_step(self) -> int:
        """The peak until the end of the first step, in which the optimizer makes its state."""
        return self.memory.peak_of(lambda p: p.mark.round == 0)

    @property
    def steady_state(self) -> int:
        """The peak of the last step that was run."""
        return self.memory.peak_of(lambda p: p.mark.round == self.recipe.steps - 1)

    @cached_property
    def pace(self) -> TrainingPace | None:
        """How long a step takes on the device that is named."""
        from weigh.report.pace import training_pace

        return training_pace(self)

    def all_assumptions(self) -> tuple[Assumption, ...]:
        from weigh.report.pace import TRAINING_ASSUMED

        said = super().all_assumptions()
        return said if self.pace is None else (*said, TRAINING_ASSUMED)

    def shown_round(self) -> int:
        return self.memory.highest.mark.round

    def flops(self) -> dict[str, int]:
        """Floating-point operations of a step by phase."""
        return flops_by_phase(self.run.trace, self.recipe.steps - 1)

    def figures(self) -> dict[str, Any]:
        flops = self.flops()
        return {
            "runtime": self.runtime,
            "job": self.job and self.job.as_dict(),
            "plan": self.plan and self.plan.as_dict(),
            "first_step": {"peak_bytes": self.first_step},
            "steady_state": {"peak_bytes": self.steady_state},
            "job_phases": [phase.as_dict() for phase in self.job_phases],
            "stages": [
                {"stage": s.stage, "rank": s.rank, "in_flight": s.in_flight, "peak_bytes": s.peak} for s in self.stages
            ],
            "elsewhere": {what: evaluated(size) for what, size in self.run.elsewhere.items()},
            "flops_per_step": {"total": sum(flops.values()), **flops, "basis": EXACT},
            "speed": self.pace and self.pace.as_dict(),
        }

    def _counts(self) -> dict[str, Any]:
        counted = self.run.counted
        return {"total": counted.total, "trainable": counted.trainable, "on_this_rank": counted.here}

    def summary(self) -> str:
        r = self.recipe
        said = [
            self.parameters_note(),
            r.dtype.name
            + (f" under {r.autocast.name} autocast" if r.autocast else "")
            + (f", gathered in {r.param_dtype.name}" if r.param_dtype else ""),
            f"batch {r.batch} x {r.sequence} tokens"
            + (f", {r.accumulation} times a step" if r.accumulation > 1 else ""),
            _optimizer(r),
            f"{self.run.attention} attention",
        ]
        if r.compile:
            said.append("compiled")
        if r.checkpointing:
            form = "checkpointing" if r.checkpointing == "full" else f"{r.checkpointing} checkpointing"
            said.append(form if r.checkpoint_every == 1 else f"{form} of 1 in {r.checkpoint_every} blocks")
        said += _changed(r)
        if r.loss_scaling:
            said.append("loss scaled")
        said += ["gradients clipped"] if r.clip else []
        said += ["averaged weights"] if r.ema else []
        said += _parallel(r)
        if self.runtime != "pytorch":
            said.append(self.runtime)
        if r.device != "cuda":
            said.append(f"on the {r.device.upper()}")
        return " · ".join(said)

    def _remedies(self) -> list[str]:
        """The cheapest changes that make it fit."""
        if self.plan is None:
            return []
        lines = [line for n, one in enumerate(self.plan.remedies, 1) for line in _remedy_lines(n, one)]
        if lines:
            cut = ", then the search was cut short: others may be cheaper" if self.plan.cut_short else ""
            return [
                *wrap(f"What makes it fit, the cheapest first ({self.plan.runs} recipes run{cut}):", 88),
                *lines,
                "",
            ]
        nearest = self.plan.nearest
        if nearest is None:
            return ["Nothing that is known here makes it fit.", ""]
        said = "; ".join(c.what for c in nearest.changes)
        tried = f"{self.plan.runs} recipes" + (", with which the search was cut short," if self.plan.cut_short else "")
        text = f"None of {tried} fits; the nearest takes {format_bytes(nearest.outcome.peak)}: {said}."
        return [*wrap(text, 88), ""]

    def _files(self) -> list[str]:
        """What became of the keys of the files that said how."""
        if self.job is None:
            return []
        read = ", ".join(f"{path} ({form})" for path, form in self.job.read_as.items())
        fates = {"used": self.job.used, "no matter to memory": self.job.harmless, "unknown": self.job.unknown}
        said = "; ".join(f"{fate}: {_keys(names)}" for fate, names in fates.items())
        return [*(f"  {line}" for line in wrap(f"Read {read}. {said}.", 86)), ""]

    def saved(self, path: str) -> str:
        """The recipe that was run, as the text of a file of that name: every setting, so that it can be run again.

        Raises:
            WeighError: the name ends neither in .toml nor in .json.
        """
        from weigh.jobs.recipe import saved
        from weigh.recipes.settings import words_of

        model = self.named
        if model is None:
            import json

            model = json.dumps(dict(self.source.config))
        device = None if self.device is None else self.device.name
        return saved(path, model, self.runtime, device, words_of(self.recipe))

    def working(self) -> list[str]:
        from weigh.report.job_phases import working

        return working(self.job_phases)

    def chart_title(self) -> str:
        number = self.shown_round()
        which = "the first step" if number == 0 else f"step {number + 1}, the steady state"
        return f"Memory over {which}: the peak is {self.where()}"

    def notes(self) -> list[str]:
        from weigh.report.job_phases import lines

        rows: list[tuple[str, ...]] = []
        for p in self.memory.phases:
            if p.mark.phase != "load":
                amounts = (format_bytes(int(size)) for size in (p.before, p.peak, p.after))  # type: ignore[arg-type]
                rows.append((str(p.mark.round + 1), p.mark.phase, *amounts))
        rows = [("step", "phase", "at its start", "peak", "at its end"), *_folded(rows)]
        flops = self.flops()
        parts = ", ".join(f"{phase} {format_flops(count)}" for phase, count in flops.items())
        unrounded = "" if not self.memory.rounded else f"; {self.memory.unrounded_peak:,} bytes before rounding to 512"
        return [
            *self._files(),
            *self._remedies(),
            *table(rows, "<<>>>"),
            "",
            *_by_stage(self.stages),
            *(lines(self.job_phases, self.recipe.gpus_per_node, self.fit) if self.job_phases else ()),
            f"  first step {exactly(self.first_step)}",
            f"  steady     {exactly(self.steady_state)}{unrounded}",
            f"  arithmetic {format_flops(sum(flops.values()))} a step",
            *wrap(parts, 86, " " * 13),
            *(self.pace.lines() if self.pace is not None else ()),
            *(f"  elsewhere  {exactly(evaluated(size))} of {what}" for what, size in self.run.elsewhere.items()),
        ]


def _folded(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Passes forward and back that come again as they were are one pair, with how often it comes."""
    found, at = list[tuple[str, ...]](), 0
    while at < len(rows):
        pair, times = rows[at : at + 2], 1
        while rows[at + 2 * times : at + 2 * times + 2] == pair:
            times += 1
        if len(pair) < 2 or times == 1:
            found.append(rows[at])
            at += 1
            continue
        found += [(step, f"{phase} x {times}", *amounts) for step, phase, *amounts in pair]
        at += 2 * times
    return found


def _by_stage(stages: tuple[StagePeak, ...]) -> list[str]:
    """A steady step on each pipeline stage, and which of them needs most."""
    if not stages:
        return []
    rows = [("stage", "first rank", "passes in flight", "peak of a steady step")]
    rows += [(str(s.stage), str(s.rank), str(s.in_flight), format_bytes(s.peak)) for s in stages]
    worst = max(stages, key=lambda s: s.peak)
    return [
        *table(rows, "<>>>"),
        "",
        f"  the worst  stage {worst.stage} (rank {worst.rank}): {exactly(worst.peak)}",
        "",
    ]


ALIKE = 4
"""Micro-batches that a search runs: what comes after the second does the same."""


def outcome(run: TrainingRun) -> Outcome:
    """What a run took."""
    from weigh.plan import Outcome
    from weigh.trace.events import FORWARD, STEP
    from weigh.trace.peak import phase_peaks

    r = run.recipe
    updates, passes = [0], [0]
    before = [0]
    for p in phase_peaks(run.trace, True):
        if p.mark.phase == FORWARD and p.mark.round == r.steps - 1:
            before.append(int(p.before))  # type: ignore[arg-type]
        (updates if p.mark.phase == STEP else passes).append(int(p.peak))  # type: ignore[arg-type]
    flops = sum(flops_by_phase(run.trace, r.steps - 1).values())
    tokens = int(r.batch) * r.accumulation * int(r.sequence)  # type: ignore[arg-type]
    inputs = 2 * INT64.itemsize * int(r.batch) * int(r.sequence)  # type: ignore[arg-type]
    update = max(updates) - inputs  # which a smaller micro-batch has fewer of
    held = max(before)
    return Outcome(max(updates + passes), update, max(passes), flops / tokens, len(run.trace.events), held)


def _remedy_lines(number: int, remedy: Remedy) -> list[str]:
    said = "; ".join(change.what for change in remedy.changes)
    figures = f"saves {format_bytes(remedy.saving)}, takes {format_bytes(remedy.outcome.peak)}"
    times = remedy.settings.get("accumulation", 1)
    micro = f", {times} micro-batches a step" if times > 1 else ""
    first, *rest = wrap(f"{said}{micro}: {figures}. Price: {remedy.price}.", 80)
    return [f"  {number}. {first}", *(f"     {line}" for line in rest)]


def _keys(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none"


def evaluated(size: Size) -> int:
    """A size of a report's run, which has no arrays."""
    assert isinstance(size, int)
    return size


def _changed(r: Training) -> list[str]:
    """What is done to the model and its kernels."""
    kernels = [f"{r.fused_kernels} kernels"] if r.fused_kernels else []
    if r.loss != "upcast":
        kernels.append(f"{r.loss.replace('_', ' ')} loss")
    return [
        *([f"{r.quantization} weights"] if r.quantization else []),
        *([f"{r.freeze.replace('_', ' ')} frozen"] if r.freeze else []),
        *([f"LoRA of rank {r.lora.rank}"] if r.lora else []),
        *([r.adapter.kind.replace("_", " ")] if r.adapter else []),
        *kernels,
    ]


def _parallel(recipe: Training) -> list[str]:
    """What a mesh of devices shares, and which of them is weighed."""
    mesh = recipe.mesh
    if mesh.world == 1:
        return []
    axes = [
        f"{axis} {getattr(mesh, axis)}"
        for axis in ("tensor", "pipeline", "context", "expert")
        if getattr(mesh, axis) > 1
    ]
    shared = f"{recipe.shard} over {mesh.shard}" if recipe.shard else f"data over {mesh.data}"
    replicas = f" in {mesh.replicas} replicas" if mesh.replicas > 1 else ""
    return [" x ".join([f"{shared}{replicas}", *axes]) + f", rank {recipe.rank} of {mesh.world}"]


def _optimizer(recipe: Training) -> str:
    if recipe.optimizer is None:
        return "no optimizer"
    implementation = recipe.implementation or implementation_of(recipe.optimizer, recipe.device)
    momentum = f", momentum {recipe.momentum}" if recipe.momentum else ""
    where = ", in the backward pass" if recipe.optimizer_in_backward else ""
    return f"{recipe.optimizer} ({implementation}{momentum}{where})"
