"""How long what PyTorch runs op by op takes: steps of training, and generation with transformers.

Modelled, and a range: published figures of what PyTorch reaches disagree, and so does what starting an operation costs.
The least is the roofline itself, op by op, with every op moving its own bytes. Communication is not timed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weigh.errors import NotModelledError
from weigh.hardware.roofline import PEAK, rate
from weigh.recipes.pace import Machine
from weigh.recipes.work import by_themselves
from weigh.records import dataclass, replace
from weigh.report.assumption import MODELLED, Assumption
from weigh.report.speed import format_seconds
from weigh.trace.events import BACKWARD, CLIP, DECODE, FORWARD, PREFILL, STEP

if TYPE_CHECKING:
    from weigh.dtypes import DType
    from weigh.hardware import Device
    from weigh.recipes.work import Pass
    from weigh.report.generation import GenerationReport
    from weigh.report.training import TrainingReport

STARTS = (6.4e-6, 30e-6)
"""Seconds to start an operation from Python, between which published steps lie, over the 1,308 operations of either:
8.4 ms on an H100 for Llama 3.1 8B (cloudai.pt/tag/cuda-graphs, read 2026-11-22: "takes 8.4 milliseconds in eager mode.
Capture that same forward pass as a CUDA graph and it drops to 5.1"), and 25.5 tokens/s on an A100 for Llama-7B
(pytorch.org/blog/accelerating-generative-ai-2, 2023-11-30: "Starting Point (25.5 tok/s)", "CPU overhead bound")."""
PRODUCTS = (0.51, 0.87)
"""Share of the peak that matrix products of the best shape reach: from 51.4 % on an MI300X to 86.9 % on an A100
(stas00/ml-engineering, compute/accelerator, "Maximum Achievable Matmul FLOPS comparison table", 2026-08-22)."""
MOVED = 0.68
"""Share of the peak bandwidth that plain kernels reach at the slow end: 1,397 of 2,039 GB/s on an A100 (gpt-fast)."""
TRAINED = (0.437, 0.570)
"""Share of the peak that whole steps of Megatron-LM reached on A100s, 22B to 1T ("Hardware FLOPs Utilization 43.7% ...
57.0%"; of the model's own operations 41.5 to 56.3 %; stas00/ml-engineering, training/performance, 2026-08-22)."""


@dataclass(frozen=True, slots=True)
class Span:
    """A time, between two."""

    least: float
    most: float

    def __str__(self) -> str:
        return f"{format_seconds(self.least)} to {format_seconds(self.most)}"

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {"least_seconds": self.least, "most_seconds": self.most}


@dataclass(frozen=True, slots=True)
class TrainingPace:
    """How long a step takes."""

    bound: float
    """Seconds below which no program does it: the roofline, op by op."""
    span: Span
    tokens: int
    """Of a step, on this rank."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"basis": MODELLED, "roofline_seconds": self.bound, **self.span.as_dict(), "tokens": self.tokens}

    def lines(self) -> list[str]:
        """For a terminal."""
        slow, fast = (f"{self.tokens / seconds:,.0f}" for seconds in (self.span.most, self.span.least))
        return [
            f"  time       {self.span} a step, modelled ({format_seconds(self.bound)} at the least)",
            f"             {slow} to {fast} tokens/s a device",
        ]


def training_pace(report: TrainingReport) -> TrainingPace | None:
    """How long a step takes on the device that is named; None where none is, or it has no figures."""
    if report.device is None or report.run.recipe.device != "cuda":
        return None
    recipe = report.recipe
    work = by_themselves(report.run.trace, (FORWARD, BACKWARD, CLIP, STEP), recipe.steps - 1)
    dtype = recipe.autocast or recipe.param_dtype or recipe.dtype
    try:
        bound = Machine(report.device, dtype).pace(work).seconds
        ran = _span(work, report.device, dtype)
        busy = work.flops / rate(report.device, dtype)[0]
    except NotModelledError:
        return None
    most, least = (max(seconds, busy / share) for seconds, share in zip((ran.most, ran.least), TRAINED, strict=True))
    tokens = recipe.batch * recipe.sequence * recipe.accumulation
    assert isinstance(tokens, int)
    return TrainingPace(bound, Span(least, most), tokens)


@dataclass(frozen=True, slots=True)
class GenerationPace:
    """How long reading the prompt takes, and each step after it."""

    prefill: Span
    step: Span
    alone: float
    """Seconds of a step in which the device is busy, at its peaks."""
    launches: int
    """Operations of a step."""
    sequences: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "basis": MODELLED,
            "prefill": self.prefill.as_dict(),
            "step": {**self.step.as_dict(), "roofline_seconds": self.alone, "operations": self.launches},
        }

    def lines(self) -> list[str]:
        """For a terminal."""
        slow, fast = (f"{1 / seconds:,.0f}" for seconds in (self.step.most, self.step.least))
        alone = format_seconds(self.alone)
        together = "" if self.sequences == 1 else f", {self.sequences} times that in all"
        return [
            f"  time       {self.prefill} to the first token, modelled",
            f"             {self.step} a token after it: {slow} to {fast} tokens/s each{together}",
            f"             ({self.launches:,} operations started one by one; the device alone: {alone})",
        ]


def generation_pace(report: GenerationReport) -> GenerationPace | None:
    """How long a generation with transformers takes; None where no device is named, or it has no figures."""
    if report.device is None or report.run.recipe.device != "cuda":
        return None
    recipe = report.recipe
    rounds = [mark.round for mark in report.run.trace.marks if mark.phase == DECODE]
    if not rounds:
        return None
    first = by_themselves(report.run.trace, (PREFILL,), 0)
    step = by_themselves(report.run.trace, (DECODE,), max(rounds))
    try:
        spans = [_span(work, report.device, recipe.dtype) for work in (first, step)]
        alone = Machine(report.device, recipe.dtype).pace(step).seconds
    except NotModelledError:
        return None
    sequences = recipe.batch * recipe.returned
    assert isinstance(sequences, int)
    return GenerationPace(spans[0], spans[1], alone, step.launches, sequences)


def _span(work: Pass, device: Device, dtype: DType) -> Span:
    """The device's time or that of starting its operations, whichever is longer."""
    (slow, fast), (soon, late) = PRODUCTS, STARTS
    least = Machine(device, dtype, replace(PEAK, compute=fast)).pace(work).seconds
    most = Machine(device, dtype, replace(PEAK, compute=slow, bandwidth=MOVED)).pace(work).seconds
    return Span(max(least, work.launches * soon), max(most, work.launches * late))


TRAINING_ASSUMED = Assumption(
    f"{TRAINED[0]:.0%} to {TRAINED[1]:.0%} of the peak arithmetic in a step",
    "what Megatron-LM published of A100s (hardware FLOPs utilization); communication is not timed",
    "the time of a step goes with it; the roofline of its operations is the least",
)
GENERATION_ASSUMED = Assumption(
    f"{STARTS[0] * 1e6:.0f} to {STARTS[1] * 1e6:.0f} us to start an operation",
    "published steps of PyTorch without CUDA graphs, on an H100 and on an A100; processors differ",
    "small batches wait for it; engines that replay graphs do not (weigh serve)",
)
