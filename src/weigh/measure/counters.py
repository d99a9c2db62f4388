"""What the allocators themselves say: the CPU's through PyTorch's profiler, CUDA's through its counters.

Both count what kernels allocate inside, which no dispatch mode sees.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from weigh.measure.watcher import Watcher
from weigh.trace.events import LOAD

PREFIX = "weigh phase "
"""Begins the name of every span that stands for a phase."""


class Profiled(Watcher):
    """The CPU allocator's level, phase by phase, while it is entered.

    It begins at zero: what is there already shall outlive the profile. Events are recorded of the thread that enters,
    and each says what the allocator had given out after it, less what has died on other threads, as the buffers of
    collectives do.
    """

    def __init__(self) -> None:
        count_every_thread()
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
        events = self._profile.profiler.kineto_results.events()
        spans = {e.name(): (e.start_ns(), e.end_ns()) for e in events if e.name().startswith(PREFIX)}
        levels = sorted(_levels(self._profile.profiler.kineto_results.experimental_event_tree()))
        answer = []
        there = levels[0][1] - levels[0][2] if levels else 0
        position, level = 0, there
        for number, (phase, round) in enumerate(self._phases):
            start, end = spans[f"{PREFIX}{number}"]
            while position < len(levels) and levels[position][0] < start:
                level = levels[position][1]
                position += 1
            before = peak = level
            while position < len(levels) and levels[position][0] <= end:
                level = levels[position][1]
                peak = max(peak, level)
                position += 1
            found = {"before": before, "peak": peak, "after": level}
            answer.append({"phase": phase, "round": round, **{name: size - there for name, size in found.items()}})
        return answer


def _levels(nodes: list[Any]) -> Iterator[tuple[int, int, int]]:
    """When something was allocated or freed on the CPU, in nanoseconds, the bytes in use after it, and its own."""
    for node in nodes:
        yield from _levels(node.children)
        tag, fields = node.typed
        if tag == torch._C._profiler._EventType.Allocation and fields.device.type == "cpu":
            yield node.start_time_ns, fields.total_allocated, fields.alloc_size


def count_every_thread() -> None:
    """Let the CPU's allocator count what dies on threads that are not profiled (c10/core/CPUAllocator.cpp)."""
    suffix = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")
    (library,) = (Path(torch.__file__).parent / "lib").glob(f"*c10.{suffix}")
    ctypes.c_bool.in_dll(ctypes.CDLL(str(library)), "FLAGS_caffe2_report_cpu_memory_usage").value = True


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
