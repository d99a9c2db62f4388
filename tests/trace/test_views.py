"""A trace as text, for Perfetto, and beside another."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weigh.dims import Axes
from weigh.recipes.trained import run
from weigh.recipes.training import Training
from weigh.trace.compare import Pair, Parting, compare
from weigh.trace.events import Allocation, Mark, Trace
from weigh.trace.expand import expand
from weigh.trace.peak import phase_peaks
from weigh.trace.perfetto import perfetto
from weigh.trace.text import trace_text
from weigh.trace.witness import read_witness

GPT2 = {"model_type": "gpt2", "n_layer": 6, "n_embd": 16, "n_head": 2, "vocab_size": 30, "n_positions": 16}
SMALL = Trace(
    [
        Allocation(48, "load", "wte", "weight", "load", (3, 4), "fp32", None),
        Allocation(32, "aten::mm", "", "activation", "forward", (2, 4), "fp32", None),
        Allocation(1000, "aten::mul", "head", "activation", "forward", (250,), "fp32", None),
    ],
    [1, 2, 3, -3, -2],
    [Mark(0, "load", 0), Mark(1, "forward", 0)],
)


def test_a_small_trace_as_text() -> None:
    assert trace_text(SMALL).splitlines() == [
        "load 0                                      at the start: 0",
        "           +48                48  wte  load  weight  [3, 4] fp32",
        "forward 0                                   at the start: 48",
        "           +32                80  (root)  aten::mm  activation  [2, 4] fp32",
        "        +1,000             1,080  head  aten::mul  activation  [250] fp32",
        "        -1,000                80  head  aten::mul  activation  [250] fp32",
        "           -32                48  (root)  aten::mm  activation  [2, 4] fp32",
    ]


def test_part_of_a_trace_as_text() -> None:
    assert trace_text(SMALL, limit=2).splitlines()[-1] == "... and 3 more events"
    assert len(trace_text(SMALL, lambda a: a.path == "head").splitlines()) == 4


def test_repeated_blocks_are_one_line_and_levels_go_on() -> None:
    trace = run(GPT2, Training(2, 8)).trace
    text = trace_text(trace).splitlines()
    assert sum("transformer.h: 3 more, like the next" in line for line in text) == sum(
        span.unit is not None for span in trace.spans
    )
    starts = [int(line.split(": ")[1].replace(",", "")) for line in text if "at the start" in line]
    assert starts == [p.before for p in phase_peaks(trace)]
    assert len(trace_text(expand(trace)).splitlines()) == trace.num_events + len(trace.marks)


def test_perfetto_shows_every_phase_and_every_level() -> None:
    trace = run(GPT2, Training(2, 8)).trace
    document = json.loads(json.dumps(perfetto(trace, "gpt2")))
    events = document["traceEvents"]
    assert {e["ph"] for e in events} == {"M", "X", "C"}
    peaks = phase_peaks(expand(trace))
    phases = [e for e in events if e["ph"] == "X" and e["tid"] == 1]
    assert [e["name"] for e in phases] == [f"{p.mark.phase} {p.mark.round}" for p in peaks]
    levels = {e["ts"]: e["args"]["bytes"] for e in events if e["ph"] == "C" and e["name"] == "all"}
    assert len(levels) == trace.num_events
    assert max(levels.values()) == max(p.peak for p in peaks)
    last: dict[str, int] = {}
    for e in events:
        if e["ph"] == "C":
            last[e["name"]] = e["args"]["bytes"]
    assert last.pop("all") == sum(last.values())
    ops = [e for e in events if e["ph"] == "X" and e["tid"] == 2]
    assert len(ops) == len(expand(trace).calls)
    assert all(e["dur"] >= 0 for e in ops)
    assert [e["ts"] for e in ops] == sorted(e["ts"] for e in ops)


def test_a_trace_beside_itself_and_beside_its_unrolled_self() -> None:
    short, long = run(GPT2, Training(2, 8)).trace, run(GPT2, Training(2, 8), unroll=True).trace
    for other in (short, long):
        found = compare(short, other)
        assert found.parting is None
        assert not any(p.difference for p in (found.peak, *found.purposes, *found.phases))
        assert found.text().endswith("The two do the same, event by event.")
    assert sum(p.left or 0 for p in found.purposes) == found.peak.left


def test_two_small_traces_side_by_side() -> None:
    other = Trace(SMALL.allocations, [1, 2, -2], [*SMALL.marks, Mark(3, "step", 0)])
    found = compare(SMALL, other, ("ours", "theirs"))
    assert found.peak == Pair("peak", 1080, 80)
    assert found.purposes == (Pair("weight", 48, 48), Pair("activation", 1032, 32))
    assert found.phases == (Pair("load 0", 48, 48), Pair("forward 0", 1080, 80), Pair("step 0", None, 48))
    head = "+1,000 head  aten::mul  activation  [250] fp32"
    assert found.parting == Parting(2, "forward 0", head, "-32 (root)  aten::mm  activation  [2, 4] fp32")
    assert found.text().splitlines() == [
        "                            ours              theirs          difference",
        "peak                       1,080                  80              -1,000",
        "",
        "at the peak:",
        "weight                        48                  48                  +0",
        "activation                 1,032                  32              -1,000",
        "",
        "by phase:",
        "load 0                        48                  48                  +0",
        "forward 0                  1,080                  80              -1,000",
        "step 0                         -                  48                 +48",
        "",
        "They part at event 2, in forward 0:",
        f"  ours: {head}",
        "  theirs: -32 (root)  aten::mm  activation  [2, 4] fp32",
    ]


def test_a_trace_that_goes_on_parts_from_one_that_ends() -> None:
    other = Trace(SMALL.allocations, SMALL.events[:-1], SMALL.marks)
    assert compare(SMALL, other).parting == Parting(
        4, "forward 0", "-32 (root)  aten::mm  activation  [2, 4] fp32", "has ended"
    )


def test_a_recorded_run_is_a_trace_like_any_other() -> None:
    path = Path(__file__).parents[1] / "data" / "witness" / "events" / "gpt2mini-t-b1s128-fp32.json.gz"
    recorded = read_witness(str(path))
    found = compare(recorded, recorded)
    assert found.peak == Pair("peak", 827716616, 827716616)
    assert max(e["args"]["bytes"] for e in perfetto(recorded)["traceEvents"] if e["ph"] == "C") == 827716616


@pytest.mark.parametrize("view", [trace_text, perfetto, lambda trace: compare(trace, trace)])
def test_sweeps_have_no_single_view(view: Any) -> None:
    trace = run(GPT2, Training(Axes().new(np.array([2, 3])), 8)).trace
    with pytest.raises(TypeError, match="single setting"):
        view(trace)
