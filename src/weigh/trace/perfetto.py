"""A trace for ui.perfetto.dev (or chrome://tracing): what was live, by purpose, over the events of the run.

The time axis counts events, a microsecond each: a ghost run has an order and no clock. One counter for each purpose
and one for all; a slice for each phase; a slice for each op, over the events since the op before it.

Format: the JSON of the Trace Event Format (counters "C", complete slices "X", names "M").
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from weigh.trace.events import Trace
from weigh.trace.expand import expand

_PROCESS = 1
_PHASES, _OPS = 1, 2


def perfetto(trace: Trace, name: str = "weigh") -> dict[str, Any]:
    """The JSON document, repeats written out. Plain sizes only; `name` is shown as the process."""
    whole = expand(trace)
    return {
        "displayTimeUnit": "ns",
        "traceEvents": [*_names(name), *_phases(whole), *_ops(whole), *_counters(whole)],
    }


def _names(name: str) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "pid": _PROCESS, "name": "process_name", "args": {"name": name}}
    for thread, label in ((_PHASES, "phases"), (_OPS, "ops")):
        yield {"ph": "M", "pid": _PROCESS, "tid": thread, "name": "thread_name", "args": {"name": label}}


def _phases(trace: Trace) -> Iterator[dict[str, Any]]:
    stops = [*(mark.event for mark in trace.marks[1:]), len(trace.events)]
    for mark, stop in zip(trace.marks, stops, strict=True):
        yield _slice(_PHASES, f"{mark.phase} {mark.round}", mark.event, stop, {"round": mark.round})


def _ops(trace: Trace) -> Iterator[dict[str, Any]]:
    done = 0
    for call in trace.calls:
        facts = {"module": call.path, "flops": call.flops, "read": call.bytes_read, "written": call.bytes_written}
        yield _slice(_OPS, call.op, done, call.event, facts)
        done = call.event


def _slice(thread: int, name: str, start: int, stop: int, facts: dict[str, Any]) -> dict[str, Any]:
    duration = stop - start
    return {"ph": "X", "pid": _PROCESS, "tid": thread, "name": name, "ts": start, "dur": duration, "args": facts}


def _counters(trace: Trace) -> Iterator[dict[str, Any]]:
    levels: dict[str, int] = {}
    total = 0
    for number, event in enumerate(trace.events):
        allocation = trace.allocations[abs(event) - 1]
        if not isinstance(allocation.num_bytes, int):
            raise TypeError("a sweep cannot be drawn: run a single setting")
        change = allocation.num_bytes if event > 0 else -allocation.num_bytes
        total += change
        levels[allocation.purpose] = levels.get(allocation.purpose, 0) + change
        for name, level in (("all", total), (allocation.purpose, levels[allocation.purpose])):
            yield {"ph": "C", "pid": _PROCESS, "name": name, "ts": number, "args": {"bytes": level}}
