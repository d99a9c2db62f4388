"""The CPU allocator's level over time, as PyTorch's profiler records it: no dispatch mode, kernels' buffers too."""

from __future__ import annotations

import torch


def profiler() -> torch.profiler.profile:
    """To run what is measured in; from the start, for the death of what was born before is not recorded."""
    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)


class Levels:
    """Live bytes during the named spans (`torch.profiler.record_function`) of a finished profile."""

    def __init__(self, finished: torch.profiler.profile) -> None:
        assert finished.profiler is not None
        events = sorted(finished.profiler.kineto_results.events(), key=lambda e: e.start_ns())
        self.changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
        self.spans = {e.name(): (e.start_ns(), e.end_ns()) for e in events if e.name().startswith("the ")}

    def during(self, span: str) -> tuple[int, int]:
        """The highest level of a span and the level at its end."""
        start, end = self.spans[span]
        level = peak = 0
        for time, change in self.changes:
            if time > end:
                break
            if time >= start:
                peak = max(peak, level, level + change)
            level += change
        return peak, level
