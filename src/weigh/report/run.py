"""What the reports of training and of generation share: a peak, who owns it, how the level moved, whether it fits."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from weigh.dtypes import DType
from weigh.records import dataclass, field, fields
from weigh.report.assumption import EXACT, MODELLED
from weigh.report.header import header
from weigh.report.memory import Memory
from weigh.report.text import PLAIN, PLURAL, Style, exactly, share, table, wrap
from weigh.units import format_bytes, format_count

if TYPE_CHECKING:
    from weigh.hardware import Device
    from weigh.recipes.generation import GenerationRun
    from weigh.recipes.trained import TrainingRun
    from weigh.report.assumption import Assumption
    from weigh.report.fit import Fit
    from weigh.report.parts import Parts
    from weigh.report.series import Series
    from weigh.sources.source import Source
    from weigh.trace.allocator_settings import AllocatorSettings
    from weigh.trace.events import Allocation
    from weigh.trace.replay import Replay, Streams

WAYS = ("purpose", "component", "layer", "owner")
"""How the peak can be divided."""


@dataclass(frozen=True, eq=False, repr=False)
class RunReport:
    """A run of a model, weighed."""

    kind: ClassVar[str] = ""
    """The command that makes the report, and the name of its schema."""
    doing: ClassVar[str] = ""
    """What the model does, for the headline."""

    source: Source
    """Which model."""
    run: TrainingRun | GenerationRun
    """What was run, and its trace."""
    parts: Parts
    """Which part of the model is what."""
    device: Device | None
    """The device that it should fit."""
    assumptions: tuple[Assumption, ...]
    """What was taken for granted."""
    allocator: AllocatorSettings | None = field(default=None, kw_only=True)
    """How PyTorch's allocator is set (PYTORCH_CUDA_ALLOC_CONF); None: as it comes."""

    @cached_property
    def memory(self) -> Memory:
        """Peaks and owners, as the allocator of the device counts."""
        return Memory(self.run.trace, self.parts, rounded=self.run.recipe.device == "cuda")

    @property
    def peak(self) -> int:
        """The most bytes allocated at any time."""
        return self.memory.peak

    def shown_round(self) -> int | None:
        """The round that charts show; None is all of them."""
        return None

    def series(self, width: int) -> Series:
        """The level over the round that charts show."""
        from weigh.report.series import sample

        return sample(self.memory, width, self.shown_round())

    @cached_property
    def replayed(self) -> Replay:
        """The run through the CUDA caching allocator, on a device without limit."""
        from weigh.trace.replay import replay

        return replay(self.run.trace, self.allocator, streams=self._streams)

    @property
    def _streams(self) -> Streams | None:
        from weigh.recipes.trained import TrainingRun

        return self.run.streams if isinstance(self.run, TrainingRun) else None

    @cached_property
    def fit(self) -> Fit | None:
        """Whether it fits the device, if one was named; where that depends on gaps, the allocator is asked for them."""
        if self.device is None:
            return None
        from weigh.report.fit import Fit

        fit = Fit(self.device, self.peak)
        if fit.verdict == "close" and self.run.recipe.device == "cuda":
            from weigh.trace.replay import replay

            rooms = (fit.capacity - room for room in fit.beside)
            least, most = (replay(self.run.trace, self.allocator, room, self._streams) for room in rooms)
            fit = Fit(self.device, self.peak, (least, most))
        return fit

    def all_assumptions(self) -> tuple[Assumption, ...]:
        """Those of the run, and those of the answer whether it fits."""
        if self.fit is None:
            return self.assumptions
        from weigh.report.fit import OUTSIDE

        return (*self.assumptions, *OUTSIDE)

    # -- JSON
    def figures(self) -> dict[str, Any]:
        """What only this kind of report says."""
        return {}

    def as_dict(self, by: str | None = None) -> dict[str, Any]:
        """For JSON, by `docs/schema/`; `by="layer"` adds the peak by layer."""
        recipe = self.run.recipe
        peak = self.memory.as_dict()
        if by == "layer":
            peak["by_layer"] = {"outside" if k is None else str(k): v for k, v in self.by_layer().items()}
        return {
            **header(self.kind, self.source, recipe.dtype),
            "recipe": {f.name: _plain(getattr(recipe, f.name)) for f in fields(recipe)},
            "parameters": self._parameters(),
            "peak": peak,
            **self.figures(),
            "phases": self.memory.phases_as_dicts(),
            "device": self.fit and self.fit.as_dict(),
            "allocator": self._allocator(),
            "assumptions": [a.as_dict() for a in self.all_assumptions()],
        }

    def _allocator(self) -> dict[str, Any] | None:
        if self.allocator is None:
            return None
        r = self.replayed
        return {
            "settings": str(self.allocator),
            "max_allocated_bytes": r.allocated,
            "max_reserved_bytes": r.reserved,
            "idle_bytes": r.idle,
            "basis": MODELLED,
        }

    def _parameters(self) -> dict[str, Any]:
        held = sum(p.count * p.tensor.num_bytes for p in self.run.parameters)
        return {**self._counts(), "bytes": held, "basis": EXACT}

    def _counts(self) -> dict[str, Any]:
        """Elements of the model's parameters, and of those that are trained."""
        counts = [(p.count * p.numel, p.tensor.requires_grad) for p in self.run.parameters]
        return {
            "total": sum(n for n, _ in counts),
            "trainable": sum(n for n, trained in counts if trained),
            "on_this_rank": False,
        }

    def by_layer(self) -> dict[int | None, int]:
        """The bytes at the peak by layer; None is what lies outside of the layers."""
        from weigh.trace.expand import expand

        memory = Memory(expand(self.run.trace), self.parts, self.memory.rounded)
        found: dict[int | None, int] = {}
        for allocation, size in memory.live():
            number = self.parts.layer(allocation.path)
            found[number] = found.get(number, 0) + size
        return dict(sorted(found.items(), key=lambda item: -1 if item[0] is None else item[0]))

    # -- text
    def summary(self) -> str:
        """The recipe in a line."""
        raise NotImplementedError

    def notes(self) -> list[str]:
        """Lines under the chart."""
        return []

    def working(self) -> list[str]:
        """Lines of the working that only this kind of report has."""
        return []

    def chart_title(self) -> str:
        """What the chart shows."""
        raise NotImplementedError

    def chart_stretch(self) -> str:
        """Which part of the run the chart shows, where it is not all of it."""
        number = self.shown_round()
        return "" if number is None else f" of step {number + 1}"

    def text(self, style: Style = PLAIN, by: str = "purpose", explain: bool = False) -> str:
        """For a terminal: the answer, what it is made of, how it came about."""
        from weigh.report.chart import stacked_bar, timeline

        lines = [
            f"{style.bold(f'{self.doing} {self.source.name} takes {exactly(self.peak)}')}",
            *(style.dim(line) for line in wrap(self.summary(), style.width)),
        ]
        if self.fit is not None:
            lines += wrap(self.fit.text(style), style.width)
        if self.allocator is not None:
            lines += wrap(self._reserved(), style.width)
        lines += ["", *stacked_bar(self.memory.by_purpose(), style)]
        if by != "purpose":
            lines += ["", f"At the peak by {by}:", *self._divided(by)]
        lines += ["", *wrap(self.chart_title(), style.width), "", *timeline(self.series(style.width - 16), style)]
        lines += ["", *self.notes()]
        if explain:
            from weigh.report.explain_run import explain_run

            lines += ["", *explain_run(self, style)]
        else:
            taken = "; ".join(a.what for a in self.all_assumptions())
            lines += ["", *(style.dim(line) for line in wrap(f"Assumed (--explain says why): {taken}.", style.width))]
        return "\n".join(lines)

    def _reserved(self) -> str:
        """What the allocator keeps for the run."""
        r = self.replayed
        return (
            f"PyTorch's allocator reserves {exactly(r.reserved)} at most for {format_bytes(r.allocated)} in blocks; "
            f"{format_bytes(r.idle)} of it, {share(r.idle, r.reserved)}, lie idle then"
        )

    def _divided(self, by: str) -> list[str]:
        if by == "owner":
            rows = [
                (format_bytes(o.num_bytes), share(o.num_bytes, self.peak), PLURAL[o.purpose], o.module or "-", o.op)
                for o in self.memory.owners(20)
            ]
            return table(rows, ">><<<")
        if by == "layer":
            named = {"outside" if k is None else f"layer {k}": v for k, v in self.by_layer().items()}
        else:
            named = self.memory.by_component()
        return table([(name, format_bytes(size), share(size, self.peak)) for name, size in named.items()], "<>>")

    def where(self) -> str:
        """Where the peak is, in words."""
        cause = self.memory.cause
        phase = self.memory.highest.mark.phase
        if cause is None:
            return f"at the start of the {phase} phase"
        size = format_bytes(self.memory.size(cause))
        return f"in the {phase} phase, when {cause.op} {_of(cause, self.parts)} allocates {size}"

    def parameters_note(self) -> str:
        """How many parameters, and how many of them are trained."""
        counts = self._parameters()
        trained = "" if counts["trainable"] == counts["total"] else f", {counts['trainable']:,} of them trained"
        here = " on this rank" if counts["on_this_rank"] else ""
        return f"{format_count(counts['total'])} parameters{here} ({counts['total']:,}{trained})"

    def svg(self, width: int = 900, height: int = 420) -> str:
        """The chart as a picture."""
        from weigh.report.svg import draw

        return draw(self, width, height)

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"<{self.doing} {self.source.name}: {exactly(self.peak)}>"

    def _repr_html_(self) -> str:
        from weigh.report.html import as_html

        return as_html(self.text(), self.svg())


def _of(allocation: Allocation, parts: Parts) -> str:
    return f"of {allocation.path}" if allocation.path else f"({parts.component(allocation)})"


def _plain(value: Any) -> Any:
    """A setting of a recipe, for JSON."""
    if isinstance(value, DType):
        return value.name
    if hasattr(value, "__dataclass_fields__"):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return list(value) if isinstance(value, tuple) else value
