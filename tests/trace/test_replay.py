"""The allocator's replay beside an independent one: the figures recorded with every GPT-2 and Llama row.

Those figures replay the recorded run of real PyTorch, with what the constructors make for a moment on the device: the
head's own weight before it is tied, and the steps from which rotary frequencies are computed. A free segment of
the head's size stays in the cache and changes what is reserved by up to 8 %. A ghost run has no such thing: it is right
for a model that is loaded (`from_pretrained` builds on the meta device) or moved to the GPU. `constructed` adds it.
"""

import json
from dataclasses import replace
from pathlib import Path
from time import process_time
from typing import Any

import pytest

from weigh import validate
from weigh.recipes import generation, trained
from weigh.trace.allocator_settings import MIB, AllocatorSettings
from weigh.trace.events import BUFFER, FORWARD, LOAD, TEMPORARY, WEIGHT, Allocation, Mark, Trace
from weigh.trace.expand import expand
from weigh.trace.peak import phase_peaks
from weigh.trace.replay import Replay, Streams, replay
from weigh.trace.witness import read_witness

DATA = Path(__file__).parents[1] / "data" / "witness"
ROWS = {
    row["id"]: row for file in sorted(DATA.glob("*.jsonl")) for row in map(json.loads, file.read_text().splitlines())
}
FIGURES = {row["id"]: row for row in map(json.loads, (DATA.parent / "allocator.jsonl").read_text().splitlines())}
RECORDED = sorted(FIGURES.keys() & {path.name.split(".")[0] for path in DATA.glob("events/*.json.gz")})
MODES = {"default": AllocatorSettings(), "expandable": AllocatorSettings(expandable_segments=True)}


def ghost(row: dict[str, Any]) -> Trace:
    if row["kind"] == "train":
        return expand(trained.run(row["config"], validate.training_recipe(row)).trace)
    return expand(generation.run(row["config"], validate.generation_recipe(row)).trace)


def constructed(trace: Trace, config: dict[str, Any]) -> Trace:
    """The same run with what the constructors of `modeling_*.py` make and drop at once."""
    allocations, events = list(trace.allocations), []

    def temporary(num_bytes: int) -> int:
        allocations.append(Allocation(num_bytes, "", "", TEMPORARY, LOAD, (), "fp32", None))
        return len(allocations)

    load = trace.events[: trace.marks[1].event]
    weights = [e for e in load if e > 0 and allocations[e - 1].purpose == WEIGHT]
    for event in load:
        made = allocations[event - 1]
        if made.purpose == BUFFER and made.path.endswith("rotary_emb.inv_freq"):
            arange, div, power, reciprocal = (temporary(made.num_bytes) for _ in range(4))
            events += [arange, div, -arange, power, -div, reciprocal, event, -reciprocal, -power]
        else:
            events.append(event)
        if event == weights[-1] and config["tie_word_embeddings"]:
            head = temporary(allocations[weights[0] - 1].num_bytes)
            events += [head, -head]
    added = len(events) - len(load)
    marks = [replace(m, event=m.event + added) if m.event else m for m in trace.marks]
    return Trace(allocations, events + trace.events[len(load) :], marks)


def figures(result: Replay) -> dict[str, int]:
    return {"allocated": result.allocated, "reserved": result.reserved}


@pytest.mark.parametrize("row", list(FIGURES))
def test_it_reserves_what_the_other_replay_reserves(row: str) -> None:
    trace = constructed(ghost(ROWS[row]), ROWS[row]["config"])
    for mode, settings in MODES.items():
        expected = FIGURES[row][mode]
        assert max(p.peak for p in phase_peaks(trace)) == expected["requested"]
        assert figures(replay(trace, settings)) == {k: expected[k] for k in ("allocated", "reserved")}, mode


@pytest.mark.parametrize("row", RECORDED)
def test_a_recorded_run_reserves_the_same(row: str) -> None:
    recorded = read_witness(str(DATA / "events" / f"{row}.json.gz"))
    for mode, settings in MODES.items():
        expected = FIGURES[row][mode]
        assert figures(replay(recorded, settings)) == {k: expected[k] for k in ("allocated", "reserved")}, mode


# -- small traces


def trace(*steps: tuple[str, int] | str, phases: tuple[tuple[str, int], ...] = ((FORWARD, 0),)) -> Trace:
    """("a", 3) makes storage a of 3 MiB, "a" frees it."""
    allocations: list[Allocation] = []
    numbers: dict[str, int] = {}
    events = []
    for step in steps:
        if isinstance(step, tuple):
            allocations.append(Allocation(step[1] * MIB, "op", step[0], TEMPORARY, FORWARD, (), "fp32", None))
            numbers[step[0]] = len(allocations)
            events.append(len(allocations))
        else:
            events.append(-numbers[step])
    return Trace(allocations, events, [Mark(event, phase, 0) for phase, event in phases])


def test_peaks_by_phase_count_what_is_there_at_the_start() -> None:
    result = replay(trace(("a", 30), "a", ("b", 6), ("c", 40), "c", phases=(("forward", 0), ("backward", 2))))
    assert [(p.mark.phase, p.allocated // MIB, p.reserved // MIB) for p in result.phases] == [
        ("forward", 30, 30),
        ("backward", 46, 70),
    ]
    assert (result.allocated, result.reserved, result.end_reserved) == (46 * MIB, 70 * MIB, 70 * MIB)


def test_the_segments_at_the_reserved_peak() -> None:
    result = replay(trace(("a", 6), ("b", 6), ("c", 6), "b", ("d", 30), ("e", 3), "d"))
    assert result.event == 4
    assert [(s.num_bytes // MIB, s.small) for s in result.segments] == [(20, False), (30, False)]
    first, second = result.segments
    assert [(b.offset // MIB, b.num_bytes // MIB, b.allocation.path) for b in first.blocks] == [
        (0, 6, "a"),
        (12, 6, "c"),
    ]
    assert [b.allocation.path for b in second.blocks] == ["d"]
    assert (result.in_use, result.idle) == (42 * MIB, 8 * MIB)
    assert result.fragmentation == 8 / 50


def test_an_expandable_segment_is_one_piece() -> None:
    result = replay(trace(("a", 6), ("b", 30), "a", ("c", 10), "b"), MODES["expandable"])
    assert [s.num_bytes // MIB for s in result.segments] == [60]
    assert [(b.offset // MIB, b.num_bytes // MIB) for b in result.segments[0].blocks] == [(6, 30), (36, 10)]


def test_where_memory_runs_out() -> None:
    result = replay(trace(("a", 30), ("b", 15), "a", ("c", 20), ("d", 40)), capacity=60 * MIB)
    found = result.out_of_memory
    assert found is not None
    assert (found.event, found.mark.phase, found.allocation.path) == (4, FORWARD, "d")
    assert (found.allocated, found.reserved) == (36 * MIB, 46 * MIB)  # b has 16 MiB: one is not worth a split
    assert result.retries == 1
    assert replay(trace(("a", 30), "a", ("b", 40)), capacity=60 * MIB).out_of_memory is None


def test_nothing_is_reserved_for_nothing() -> None:
    result = replay(trace(("a", 0), "a"))
    assert (result.reserved, result.event, result.segments, result.fragmentation) == (0, -1, (), 0.0)


def test_streams_do_not_share() -> None:
    steps = trace(("a", 30), "a", ("b", 30), "b")
    assert replay(steps).reserved == 30 * MIB
    assert replay(steps, streams=Streams(lambda a: int(a.path == "b"))).reserved == 60 * MIB


def test_blocks_that_another_stream_reads_wait() -> None:
    steps = trace(*[step for name in "abcd" for step in ((name, 30), name)])
    streams = Streams(lambda a: 1, {1: 2})
    result = replay(steps, streams=streams)
    assert (result.allocated, result.reserved, result.retries) == (30 * MIB, 60 * MIB, 0)
    short = replay(steps, capacity=40 * MIB, streams=streams)
    assert short.out_of_memory is None
    assert (short.reserved, short.retries > 0) == (30 * MIB, True)


def test_a_compressed_trace_is_written_out() -> None:
    row = ROWS["llama4l-t-b4s1024-fp32"]
    compressed = trained.run(row["config"], validate.training_recipe(row)).trace
    assert compressed.repeats
    result = replay(compressed)
    assert result == replace(replay(expand(compressed)), segments=result.segments)


def test_ten_thousand_events_take_a_blink() -> None:
    steps = ghost(ROWS["gpt2m-t-b2s1024-fp32-ckpt"])
    assert len(steps.events) > 9_000
    for settings in MODES.values():
        times = []
        for _ in range(5):
            start = process_time()
            replay(steps, settings)
            times.append(process_time() - start)
        assert min(times) < 0.05  # about 15 ms
