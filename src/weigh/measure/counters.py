"""What the allocators themselves say: the CPU's through PyTorch's profiler, CUDA's through its counters.

Both count what kernels allocate inside, which no dispatch mode sees.
"""

from __future__ import annotations

from typing import Any

import torch

from weigh.measure.watcher import Watcher
from weigh.trace.events import LOAD

PREFIX = "weigh phase "
"""Begins the name of every span that stands for a phase."""


class Profiled(Watcher):
    """The CPU allocator's level, phase by phase, while it is entered.

    From the start: the death of what was born before the profile is not recorded. Nor is what dies on another thread,
    as the buffers of collectives do; so several processes are not profiled.
    """

    def __init__(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        self._profile = torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True)
        self._phases: list[tuple[str, int]] = []
        self._span: Any = None

    def __enter__(self) -> Profiled:
        self._profile.__enter__()
        self.mark(LOAD)
        return self

    def __exit__(self, *exception: Any) -> None:
        self.end()
        self._profile.__exit__(*exception)

    def mark(self, phase: str, round: int = 0) -> None:
        self.end()
        self._span = torch.profiler.record_function(f"{PREFIX}{len(self._phases)}")
        self._span.__enter__()
        self._phases.append((phase, round))

    def end(self) -> None:
        if self._span is not None:
            self._span.__exit__(None, None, None)
            self._span = None

    def peaks(self) -> list[dict[str, Any]]:
        """Bytes before, at the peak and after every phase."""
        assert self._profile.profiler is not None
        events = sorted(self._profile.profiler.kineto_results.events(), key=lambda e: e.start_ns())
        changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
        spans = {e.name(): (e.start_ns(), e.end_ns()) for e in events if e.name().startswith(PREFIX)}
        answer = []
        level = position = 0
        for number, (phase, round) in enumerate(self._phases):
            start, end = spans[f"{PREFIX}{number}"]
            while position < len(changes) and changes[position][0] < start:
                level += changes[position][1]
                position += 1
            before = peak = level
            while position < len(changes) and changes[position][0] <= end:
                level += changes[position][1]
                peak = max(peak, level)
                position += 1
            answer.append({"phase": phase, "round": round, "before": before, "peak": peak, "after": level})
        return answer


class Counters(Watcher):
    """CUDA's counters, phase by phase: bytes allocated and reserved.

    Every phase begins with `reset_peak_memory_stats`, so that its peak is its own; the device is waited for, so that no
    kernel's buffer falls into the next phase.
    """

    def __init__(self) -> None:
        self._found: list[dict[str, Any]] = []
        self.mark(LOAD)

    def mark(self, phase: str, round: int = 0) -> None:
        self.end()
        torch.cuda.reset_peak_memory_stats()
        self._found.append({"phase": phase, "round": round, "before": torch.cuda.memory_allocated()})

    def end(self) -> None:
        torch.cuda.synchronize()
        if self._found and "peak" not in self._found[-1]:
            self._found[-1] |= {
                "peak": torch.cuda.max_memory_allocated(),
                "after": torch.cuda.memory_allocated(),
                "reserved": torch.cuda.max_memory_reserved(),
            }

    def peaks(self) -> list[dict[str, Any]]:
        """Bytes before, at the peak and after every phase, and the most that was reserved in it."""
        self.end()
        return self._found
