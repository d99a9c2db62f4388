"""The package records what another program recorded before: every number of varied rows, and whole event lists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.rows import WITNESS, job, rows

from weigh.measure.job import Answer
from weigh.measure.process import Process
from weigh.trace.compare import compare
from weigh.trace.events import Trace
from weigh.trace.file import load
from weigh.trace.witness import read_witness
from weigh.validate import witnesses

pytestmark = [pytest.mark.torch, pytest.mark.slow]

ROWS = rows()
AGAIN = """
    gpt2mini-t-b2s100-bf16-eager gpt2mini-t-b2s256-ac-ckpt gpt2s-drop-t-b4s1024-fp32-drop gpt2s-t-b4s512-fp32-keepgrad
    gpt2s-t-b4s512-fp32-clip llamamini-t-b2s128-bf16-lora
    llama4l-t-b4s1024-bf16-ckptreentrant
    llama4l-t-b1s256-bf16-fused llama4l-t-b2s1024-bf16-math llama4l-t-b2s1024-bf16-cudnn
      llama4l-t-b2s1024-bf16-frzlast mistral4l-t-b4s600-fp32-overwin
    qwen2-4l-t-b2s512-bf16-loraall mixtral4l-t-b4s1024-bf16 dsv3-3l-t-b4s1024-bf16-ckpt
    mamba2-2l-t-b2s200-bf16-ckpt t5s-drop-t-b4s256-ac-drop bertmini-t-b2s64-fp32-drop llamamini-infer-b2s64-bf16
    qwen3-4l-infer-b2s512-bf16-static-k1 falcon4l-new-infer-b2s512-bf16-k1 mamba2l-infer-b2s64-bf16
    llamamini-fsdp2-b2s128-w2 llama4l-fsdp2-b4s1024-w8-ckpt llama6v-fsdp2-b8s1024-w2-noreshard
""".split()
EVENTS = sorted(path.name.removesuffix(".json.gz") for path in (WITNESS / "events").iterdir())


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    with Process(timeout=300) as running:
        yield running


def again(row: dict[str, Any], process: Process, folder: Path) -> tuple[Trace, Answer]:
    asked = job(row, str(folder / "run.trace"))
    answer = process.ask(asked)
    return load(str(asked.output))[0], answer


@pytest.mark.parametrize("name", AGAIN)
def test_a_row(name: str, process: Process, tmp_path: Path) -> None:
    row = ROWS[name]
    trace, answer = again(row, process, tmp_path)
    wanted = row["bytes"] | {f"{key}_r512": value for key, value in row["bytes_r512"].items()}
    assert witnesses.recorded_figures(trace, row["kind"]) == wanted
    assert answer.attention == row["sdpa"]
    assert answer.opaque == {}
    phases = {"fwd": "forward", "bwd": "backward"}
    for phase, levels in row.get("module_levels", {}).items():
        assert layer_levels(trace, phases.get(phase, phase)) == highest(levels)


def highest(levels: list[list[Any]]) -> dict[str, int]:
    """By layer; the model's own module and what is outside of it are one here."""
    found: dict[str, int] = {}
    for layer, level in levels:
        name = "" if layer == "(root)" else layer
        found[name] = max(found.get(name, 0), level)
    return found


def layer_levels(trace: Trace, phase: str) -> dict[str, int]:
    """By layer, in the last run of a phase, the highest level right after it allocated."""
    found: dict[str, int] = {}
    *_, (start, stop) = bounds(trace, phase)
    level = 0
    for number, event in enumerate(trace.events[:stop]):
        allocation = trace.allocations[abs(event) - 1]
        level += int(allocation.num_bytes) if event > 0 else -int(allocation.num_bytes)  # type: ignore[arg-type]
        if number >= start and event > 0:
            layer = re.match(r"(.*?\.\d+)(?:\.|$)", allocation.path)
            name = layer[1] if layer else allocation.path
            found[name] = max(found.get(name, 0), level)
    return found


def bounds(trace: Trace, phase: str) -> list[tuple[int, int]]:
    starts = [*(m.event for m in trace.marks), len(trace.events)]
    return [(m.event, stop) for m, stop in zip(trace.marks, starts[1:], strict=True) if m.phase == phase]


@pytest.mark.parametrize("name", EVENTS)
def test_an_event_list(name: str, process: Process, tmp_path: Path) -> None:
    trace, _ = again(ROWS[name], process, tmp_path)
    recorded = read_witness(str(WITNESS / "events" / f"{name}.json.gz"))
    found = compare(recorded, trace)
    assert found.peak.difference == 0
    assert found.parting is None
    assert len(recorded.events) == len(trace.events)
    for theirs, ours in zip(recorded.allocations, trace.allocations, strict=True):
        assert (theirs.num_bytes, theirs.op, theirs.shape, theirs.dtype) == (
            ours.num_bytes,
            ours.op,
            ours.shape,
            ours.dtype,
        )
        assert (theirs.purpose, theirs.path, theirs.phase) == (ours.purpose, ours.path, ours.phase)
