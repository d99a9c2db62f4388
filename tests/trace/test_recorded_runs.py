"""Ghost runs beside recorded runs of real PyTorch: every event, and every number of every recorded row."""

import gzip
import json
import re
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from weigh import validate
from weigh.errors import InputError
from weigh.recipes import generation, trained
from weigh.trace.events import ACTIVATION, BACKWARD, DECODE, FORWARD, LOAD, PREFILL, TEMPORARY, Trace
from weigh.trace.expand import expand
from weigh.trace.witness import read_witness

DATA = Path(__file__).parents[1] / "data" / "witness"
ROWS = {
    row["id"]: row for file in sorted(DATA.glob("*.jsonl")) for row in map(json.loads, file.read_text().splitlines())
}
RECORDED = sorted(DATA.glob("events/*.json.gz"))


def ghost(row: dict[str, Any]) -> Trace:
    if row["kind"] != "infer":
        return trained.run(row["config"], validate.training_recipe(row)).trace
    return generation.run(row["config"], validate.generation_recipe(row)).trace


def happenings(trace: Trace) -> dict[tuple[str, int], list[tuple[int, str, str, str]]]:
    """By phase: signed bytes, path, op and purpose of every event, deaths that follow each other sorted.

    Their order differs between runs of PyTorch itself where a cache is keyed by address, and no level between an
    allocation and the next depends on it. The recorder does not number the tokens of a generation.
    """
    result: dict[tuple[str, int], list[tuple[int, str, str, str]]] = {}
    stops = [*(mark.event for mark in trace.marks[1:]), len(trace.events)]
    for mark, stop in zip(trace.marks, stops, strict=True):
        phase = result.setdefault((mark.phase, 0 if mark.phase == DECODE else mark.round), [])
        phase += _sorted_deaths(trace, mark.event, stop)
    return result


def _sorted_deaths(trace: Trace, start: int, stop: int) -> Iterator[tuple[int, str, str, str]]:
    deaths = []
    for event in trace.events[start:stop]:
        a = trace.allocations[abs(event) - 1]
        op = a.op.removesuffix(".Scalar")  # the recorder does not tell overloads apart
        purpose = a.purpose
        if purpose == ACTIVATION and a.phase == BACKWARD:
            purpose = TEMPORARY  # it takes the last op of a second forward for a part of the backward
        if event < 0:
            deaths.append((-a.num_bytes, a.path, op, purpose))
            continue
        yield from sorted(deaths)
        deaths.clear()
        yield a.num_bytes, a.path, op, purpose
    yield from sorted(deaths)


@pytest.mark.parametrize("path", RECORDED, ids=lambda p: p.name.split(".")[0])
def test_the_ghost_run_is_the_recorded_run_event_by_event(path: Path) -> None:
    recorded = read_witness(str(path))
    ours, theirs = happenings(expand(ghost(ROWS[path.name.split(".")[0]]))), happenings(recorded)
    made_and_dropped = ours.pop((LOAD, 0)), theirs.pop((LOAD, 0))  # what constructors make for a moment is not mirrored
    assert len({sum(event[0] for event in events) for events in made_and_dropped}) == 1
    assert ours == theirs


@pytest.mark.parametrize("row", ROWS)
def test_every_recorded_number_is_predicted_exactly(row: str, tmp_path: Path) -> None:
    file = tmp_path / "row.jsonl"
    file.write_text(json.dumps(ROWS[row]))
    lines = validate.validate(str(file)).lines
    assert len(lines) == len(ROWS[row]["bytes"]) + len(ROWS[row]["bytes_r512"])
    assert [(x.metric, x.predicted) for x in lines] == [(x.metric, x.reference) for x in lines]


def highest_levels_by_layer(trace: Trace, phase: str) -> dict[str, int]:
    """The highest level right after an allocation by each layer, in the last round of a phase."""
    result: dict[str, int] = {}
    levels = list(accumulate(trace.changes()))
    stops = [*(mark.event for mark in trace.marks[1:]), len(trace.events)]
    last = max(mark.round for mark in trace.marks if mark.phase == phase)
    for mark, stop in zip(trace.marks, stops, strict=True):
        if (mark.phase, mark.round) != (phase, last):
            continue
        for number in range(mark.event, stop):
            event = trace.events[number]
            if event > 0:
                layer = re.sub(r"(\.\d+)\..*", r"\1", trace.allocations[event - 1].path)
                result[layer] = max(result.get(layer, 0), levels[number])
    result.pop("", None)  # the recorder tells the root module from no module
    return result


ROOT = ("", "(root)", "base_model.model")
"""The model itself, or no module at all, as the recorder writes them (the last one where peft wraps the model)."""

NAMELESS = ("llama4l-t-b4s1024-bf16-ckptreentrant", "bwd")
"""The recorder names no module for the nodes that a reentrant checkpoint makes while the backward pass runs."""


@pytest.mark.parametrize("row", [i for i, row in ROWS.items() if "module_levels" in row])
def test_every_layer_reaches_its_recorded_level(row: str) -> None:
    trace = expand(ghost(ROWS[row]))
    for short, levels in ROWS[row]["module_levels"].items():
        phase = {"fwd": FORWARD, "bwd": BACKWARD, "prefill": PREFILL}[short]
        recorded = {path: level for path, level in levels if path not in ROOT}
        ours = highest_levels_by_layer(trace, phase)
        if (row, short) == NAMELESS:
            ours = {k: v for k, v in ours.items() if ".layers." not in k}
            recorded = {k: v for k, v in recorded.items() if ".layers." not in k}
        if (ROWS[row]["kind"], short) == ("fsdp1", "bwd"):
            continue  # gradients are reduced after their accumulation, which the recorder gives to no module
        if ROWS[row]["kind"].startswith("fsdp"):  # outside of the blocks it names what hooks do after other modules
            ours, recorded = ({k: v for k, v in found.items() if ".layers." in k} for found in (ours, recorded))
        assert ours == recorded


def test_every_recorded_run_is_compared() -> None:
    assert len(RECORDED) == 10
    assert len(ROWS) >= 75


@pytest.mark.parametrize("content", [b"", b"no gzip", gzip.compress(b"[]", mtime=0), gzip.compress(b'{"strings": []}')])
def test_what_is_no_recorded_run_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.json.gz"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_witness(str(file))
    assert caught.value.where == str(file)
    with pytest.raises(InputError):
        read_witness(str(tmp_path / "missing"))
