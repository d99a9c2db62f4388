"""What a run has shown: text and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from math import exp
from typing import TYPE_CHECKING, Any

from weigh.lab.bench import Bench
from weigh.lab.loops import peak
from weigh.lab.techniques import TECHNIQUES, Technique
from weigh.lab.words import milliseconds, percent
from weigh.records import dataclass, field, fields, replace
from weigh.report.header import header
from weigh.report.text import PLAIN, Style, table, wrap
from weigh.trace.events import (
    ACTIVATION,
    BUFFER,
    COMMUNICATION,
    GRADIENT,
    LOAD,
    OPTIMIZER_STATE,
    TEMPORARY,
    UNATTRIBUTED,
    UNSHARDED,
    WEIGHT,
)
from weigh.units import format_bytes

if TYPE_CHECKING:
    from weigh.trace.events import Trace


@dataclass(frozen=True, slots=True)
class Line:
    """One technique: what was measured, and what was predicted."""

    name: str
    refused: str | None = None
    """Why it was not run; then nothing else is here."""
    parameters: int = 0
    trained_parameters: int = 0
    weight_bytes: int = 0
    """Of the weights where they are kept."""
    predicted_peak: int = 0
    predicted: Mapping[str, int] = field(default_factory=dict)
    """Bytes at the predicted peak, by purpose."""
    measured_peak: int = 0
    """By the profiler of PyTorch: the most bytes of the first two steps; of one process."""
    recorded_peak: int = 0
    """By the recorder of storages, which does not see what kernels allocate inside."""
    recorded: Mapping[str, int] = field(default_factory=dict)
    """Bytes at the recorded peak, by purpose."""
    phase: str = ""
    """In which the measured peak was."""
    opaque: Mapping[str, int] = field(default_factory=dict)
    """Ops whose inside cannot be seen, and how often they ran in two steps."""
    losses: tuple[float, ...] = ()
    """Of every step, nats a byte."""
    held_out: tuple[tuple[int, float], ...] = ()
    """Steps taken, and nats a byte on held-out text."""
    seconds_per_step: float | None = None
    """By the clock, the median."""
    cpu_seconds_per_step: float | None = None
    """Of one process, all its threads together, the median: what other programs on the machine do not change."""
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def refusal(cls, technique: Technique, why: str) -> Line:
        """A technique that was not run."""
        return cls(technique.name, refused=why)

    @classmethod
    def measured(cls, technique: Technique, answer: Mapping[str, Any], prediction: Trace, recorded: Trace) -> Line:
        """A technique that was."""
        highest = max((p for p in answer["peaks"] if p["phase"] != LOAD), key=lambda p: p["peak"])
        expected, _, by_purpose = peak(prediction)
        seen, _, seen_by_purpose = peak(recorded)
        same = (
            "opaque",
            "seconds_per_step",
            "cpu_seconds_per_step",
            "weight_bytes",
            "parameters",
            "trained_parameters",
            "versions",
        )
        return cls(
            technique.name,
            predicted_peak=expected,
            predicted=by_purpose,
            measured_peak=highest["peak"],
            recorded_peak=seen,
            recorded=seen_by_purpose,
            phase=highest["phase"],
            losses=tuple(answer["losses"]),
            held_out=tuple((step, loss) for step, loss in answer["held_out"]),
            **{name: answer[name] for name in same},
        )

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Line:
        """Out of JSON."""
        line = cls(**document)
        return replace(line, losses=tuple(line.losses), held_out=tuple((s, x) for s, x in line.held_out))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "losses": list(self.losses), "held_out": [list(look) for look in self.held_out]}

    def by_purpose(self) -> dict[str, int]:
        """Measured: what the recorder saw, by purpose, and what the profiler counted beyond that, inside of kernels."""
        inside = self.measured_peak - self.recorded_peak
        return {**self.recorded, **({UNATTRIBUTED: inside} if inside > 0 else {})}

    @property
    def technique(self) -> Technique:
        """Its row."""
        return TECHNIQUES[self.name]

    @property
    def error(self) -> float:
        """Of the prediction, relative to what the profiler measured."""
        return self.predicted_peak / self.measured_peak - 1

    @property
    def activation_share(self) -> float:
        """What of the predicted peak is no weight, gradient or state: activations and temporaries."""
        moving = self.predicted.get(ACTIVATION, 0) + self.predicted.get(TEMPORARY, 0)
        return moving / self.predicted_peak

    @property
    def before(self) -> float:
        """Nats a byte on held-out text before the first step."""
        return self.held_out[0][1]

    @property
    def loss(self) -> float:
        """After the last."""
        return self.held_out[-1][1]


@dataclass(frozen=True, slots=True)
class LabReport:
    """All techniques of a run."""

    bench: Bench
    text_of: Mapping[str, Any]
    """What was trained on."""
    lines: tuple[Line, ...]

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> LabReport:
        """Out of JSON."""
        names = [f.name for f in fields(Line)]
        lines = (Line.of({name: found[name] for name in names}) for found in document["techniques"])
        return cls(Bench(**document["bench"]), document["text"], tuple(lines))

    def done(self) -> list[Line]:
        """Those that were run."""
        return [line for line in self.lines if line.refused is None]

    def groups(self) -> dict[str, list[Line]]:
        """Those that were run, by what they are compared with; the first of a group is that."""
        found: dict[str, list[Line]] = {}
        for line in self.done():
            found.setdefault(line.technique.group, []).append(line)
        return found

    def base(self, line: Line) -> Line:
        """What a technique is compared with."""
        return next(other for other in self.lines if other.name == line.technique.compared_with)

    @property
    def worst(self) -> Line | None:
        """Where prediction and measurement are furthest apart."""
        return max(self.done(), key=lambda line: abs(line.error), default=None)

    def title(self) -> str:
        """What was trained."""
        b = self.bench
        kind = "GPT" if b.model == "gpt" else "Llama"
        return f"A {kind} of {b.layers} layers, {b.hidden} wide"

    def subtitle(self) -> str:
        """How, and on what."""
        b = self.bench
        first = next(iter(self.done()), None)
        size = f"{first.parameters:,} parameters, " if first is not None else ""
        return (
            f"{size}{b.steps} steps of {b.batch} x {b.sequence} bytes, seed {b.seed}; text: {self.text_of['name']} "
            f"({self.text_of['training_bytes']:,} bytes, {self.text_of['held_out_bytes']:,} held out)"
        )

    def conclusion(self) -> list[str]:
        """What the run says of the predictions, sentence by sentence."""
        worst = self.worst
        if worst is None:
            return ["No technique was run."]
        within = f"within {100 * abs(worst.error):.2g} % of what PyTorch's profiler counted"
        said = [f"The {len(self.done())} predicted peaks are {within}; the furthest off is {worst.name}'s."]
        opaque = sorted({op for line in self.done() for op in line.opaque})
        if opaque:
            said.append(f"PyTorch does not show what these ops allocate inside: {', '.join(opaque)}.")
        return said

    def as_dict(self) -> dict[str, Any]:
        """For JSON, by `docs/schema/lab.json`."""
        return {
            **header("lab"),
            "bench": self.bench.as_dict(),
            "text": dict(self.text_of),
            "techniques": [
                {
                    **line.as_dict(),
                    "says": line.technique.says,
                    "group": line.technique.group,
                    "compared_with": line.technique.compared_with,
                    "error": None if line.refused else line.error,
                }
                for line in self.lines
            ],
        }

    def text(self, style: Style = PLAIN, explain: bool = False) -> str:
        """For a terminal; `explain` adds what the peaks are made of, and what each technique does."""
        lines = [style.bold(self.title()), *wrap(self.subtitle(), style.width)]
        rows: list[tuple[str, ...]] = [("", "loss", "against", "peak", "predicted", "off by", "weights", "CPU a step")]
        for members in self.groups().values():
            rows += [self._row(line, style) for line in members]
        head, *cells = table(rows, "<>>>>>>>", indent=0)
        for group, members in self.groups().items():
            lines += ["", style.bold(group[0].upper() + group[1:]), style.dim(head), *cells[: len(members)]]
            del cells[: len(members)]
        for line in self.lines:
            if line.refused is not None:
                lines += ["", *wrap(f"{line.name} was not run: {line.refused}", style.width)]
        if explain:
            lines += ["", *self._kinds(style)]
            for line in self.done():
                lines += ["", *wrap(f"{line.name}: {line.technique.says}.", style.width)]
        for said in (*self.conclusion(), NOTE):
            lines += ["", *wrap(said, style.width)]
        return "\n".join(lines)

    def _kinds(self, style: Style) -> list[str]:
        """Predicted and measured bytes at the peaks, by purpose."""
        least = MIB / 200
        done = self.done()
        kinds = [k for k in SHORT if any(max(x.predicted.get(k, 0), x.by_purpose().get(k, 0)) > least for x in done)]
        rows: list[tuple[str, ...]] = [("MiB", "", *(SHORT[k] for k in kinds))]
        for line in done:
            for name, how, found in (
                (line.name, "predicted", line.predicted),
                ("", "measured", line.by_purpose()),
            ):
                rows.append((name, how, *(f"{found[k] / MIB:.2f}" if found.get(k) else "-" for k in kinds)))
        head, *cells = table(rows, "<<" + ">" * len(kinds), indent=0)
        return [style.bold("What the peaks are made of"), style.dim(head), *cells]

    def __str__(self) -> str:
        return self.text()

    def _row(self, line: Line, style: Style) -> tuple[str, ...]:
        good = True if abs(line.error) < GOOD else None if abs(line.error) < CLOSE else False
        return (
            line.name,
            *cells(self, line)[:4],
            style.good(percent(line.error), good),
            *cells(self, line)[4:],
        )


MIB = 1 << 20
SHORT = {
    WEIGHT: "weights",
    BUFFER: "buffers",
    OPTIMIZER_STATE: "states",
    GRADIENT: "gradients",
    ACTIVATION: "activations",
    UNSHARDED: "unsharded",
    COMMUNICATION: "buckets",
    TEMPORARY: "temporary",
    UNATTRIBUTED: "kernels",
}
"""Purposes, as narrow columns call them; inputs are a few bytes."""
GOOD, CLOSE = 0.005, 0.02
NOTE = (
    "Losses are nats a byte on text that no training saw; their exponential is the perplexity of a byte. A peak is the "
    "most that the allocator held during the first two steps, in one process."
)


def cells(report: LabReport, line: Line) -> tuple[str, ...]:
    """A technique's figures for people: loss, against what, peak, predicted, weights, processor time of a step."""
    base = report.base(line)
    against = "" if base is line else f"{line.loss - base.loss:+.3f}"
    return (
        f"{line.loss:.3f}",
        against,
        format_bytes(line.measured_peak),
        format_bytes(line.predicted_peak),
        format_bytes(line.weight_bytes),
        milliseconds(line.cpu_seconds_per_step),
    )


def perplexity(loss: float) -> float:
    """Of a byte.

    >>> round(perplexity(0.693147), 3)
    2.0
    """
    return exp(loss)
