"""What a run says to the metrics by which measured cases are published, through the caching allocator's eyes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from weigh.errors import NotModelledError
from weigh.recipes.trained import TrainingRun
from weigh.trace.allocator_settings import AllocatorSettings
from weigh.trace.events import LOAD
from weigh.trace.peak import phase_peaks
from weigh.trace.replay import Replay, replay


class Measured:
    """The figures of one run as `torch.cuda` and the driver would report them, in bytes, each worked out once."""

    def __init__(self, run: TrainingRun, outside: int, device_bytes: int | None, allocator: str = "") -> None:
        self.trace = run.trace
        self.streams = run.streams
        self.capacity = None if device_bytes is None else device_bytes - outside
        self.outside = outside
        self.allocator = AllocatorSettings.parse(allocator)
        self.on_cpu = run.recipe.device == "cpu"

    @cached_property
    def replayed(self) -> Replay:
        """The whole run through the allocator; without a limit where it does not fit, for the real one did."""
        found = replay(self.trace, self.allocator, self.capacity, self.streams)
        return found if found.out_of_memory is None else replay(self.trace, self.allocator, streams=self.streams)

    def _bounded(self, num_bytes: int) -> int:
        """Reserved bytes that a device without room for all of them can have had."""
        return num_bytes if self.capacity is None else min(num_bytes, self.capacity)

    @property
    def max_allocated(self) -> int:
        """torch.cuda.max_memory_allocated() over the run; on the CPU, what its allocator was asked for."""
        if self.on_cpu:
            return max(int(p.peak) for p in phase_peaks(self.trace) if p.mark.phase != LOAD)  # type: ignore[arg-type]
        return self.replayed.allocated

    @property
    def max_active(self) -> int:
        """active_bytes.all.peak of torch.cuda.memory_stats(): what is allocated, and waited for by no other stream."""
        if self.streams is not None:
            raise NotModelledError("what other streams wait for", where="max_active")
        return self.replayed.allocated

    @property
    def max_allocated_first_step(self) -> int:
        """The same until the end of the first step."""
        return max(p.allocated for p in self.replayed.phases if p.mark.round == 0)

    @property
    def max_reserved(self) -> int:
        """torch.cuda.max_memory_reserved() over the run."""
        return self._bounded(self.replayed.reserved)

    @property
    def reserved_after_step(self) -> int:
        """torch.cuda.memory_reserved() at the end."""
        return self._bounded(self.replayed.end_reserved)

    @property
    def allocated_after_step(self) -> int:
        """torch.cuda.memory_allocated() after the last step."""
        if self.on_cpu:
            return int(phase_peaks(self.trace)[-1].after)  # type: ignore[arg-type]
        return self.replayed.end_allocated

    @property
    def allocated_after_first_step(self) -> int:
        """The same after the first step."""
        return [p.after for p in self.replayed.phases if p.mark.round == 0][-1]

    @property
    def after_load(self) -> int:
        """torch.cuda.memory_allocated() before the first step."""
        return [p.after for p in self.replayed.phases if p.mark.phase == LOAD][-1]

    @property
    def reserved_after_load(self) -> int:
        """torch.cuda.memory_reserved() before the first step."""
        return [p.reserved for p in self.replayed.phases if p.mark.phase == LOAD][-1]

    @property
    def device_used(self) -> int:
        """What the driver reports in use: everything reserved, and what is outside of the allocator."""
        return self.max_reserved + self.outside


METRICS = tuple(name for name in vars(Measured) if not name.startswith("_") and name != "replayed")


def training_metrics(
    run: TrainingRun, wanted: Iterable[str], outside: int, device_bytes: int | None = None, allocator: str = ""
) -> dict[str, int]:
    """The metrics of `wanted` that a run of one rank has; `NAME_rankN` is rank N's.

    `outside` is what the device holds beside the allocator's memory, `device_bytes` all that it has, if that is known;
    `allocator` is what PYTORCH_CUDA_ALLOC_CONF said.
    """
    measured = Measured(run, outside, device_bytes, allocator)
    found = {}
    for name in wanted:
        metric, _, rank = name.partition("_rank")
        if metric in METRICS and (not rank or int(rank) == run.recipe.rank):
            found[name] = int(getattr(measured, metric))
    return found
