"""Records rows for tests/data/witness: real PyTorch steps on fake CUDA tensors, seen by the package's own recorder.

python tools/record_rows.py FILE.jsonl          fill in the rows of the file that record no bytes yet
python tools/record_rows.py FILE.jsonl --beside  and say, phase by phase, where the ghost run parts from them

A row says `id`, `kind` ("train", "tp" or "infer"), `config`, `batch`, `seq` and `settings`; it gets `bytes`,
`bytes_r512`, `module_levels` and `sdpa`. Needs `weigh[torch]`.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from weigh.measure.job import Job, words
from weigh.measure.process import Process
from weigh.recipes import generation, trained
from weigh.trace.events import Trace
from weigh.trace.expand import expand
from weigh.trace.file import load
from weigh.validate import generation_recipe, training_recipe
from weigh.validate.witnesses import recorded_figures

TRAINED = {"fwd": "forward", "bwd": "backward"}
PHASES = {"train": TRAINED, "tp": TRAINED, "infer": {"prefill": "prefill"}}
ROUNDED = "_r512"


def recorded(row: dict[str, Any], process: Process) -> tuple[Trace, dict[str, int]]:
    """The trace of a real run, and how often each attention kernel was taken."""
    train = row["kind"] != "infer"
    recipe = training_recipe(row) if train else generation_recipe(row)
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "run.trace")
        answer = process.ask(Job("train" if train else "generate", words(recipe), config=row["config"], output=output))
        return load(output)[0], answer.attention


def ghost(row: dict[str, Any]) -> Trace:
    """The same run on ghost tensors, every event written out."""
    if row["kind"] != "infer":
        return expand(trained.run(row["config"], training_recipe(row)).trace)
    return expand(generation.run(row["config"], generation_recipe(row)).trace)


def phases(trace: Trace) -> list[tuple[str, int, int]]:
    """Name, first event and end of every phase."""
    stops = [*(mark.event for mark in trace.marks[1:]), len(trace.events)]
    return [(f"{m.phase} {m.round}", m.event, stop) for m, stop in zip(trace.marks, stops, strict=True)]


def layer_of(path: str) -> str:
    """The layer that a module lies in.

    >>> layer_of("model.layers.2.mlp.act_fn")
    'model.layers.2'
    """
    return re.sub(r"(\.\d+)\..*", r"\1", path)


def levels(trace: Trace, phase: str) -> list[list[Any]]:
    """In the last run of a phase, the highest level right after an allocation by each layer."""
    found: dict[str, int] = {}
    start, stop = [(a, b) for name, a, b in phases(trace) if name.split()[0] == phase][-1]
    level = 0
    for number, event in enumerate(trace.events[:stop]):
        allocation = trace.allocations[abs(event) - 1]
        level += int(allocation.num_bytes) if event > 0 else -int(allocation.num_bytes)  # type: ignore[arg-type]
        if number >= start and event > 0:
            layer = layer_of(allocation.path)
            found[layer] = max(found.get(layer, 0), level)
    return [[layer, level] for layer, level in found.items()]


def fill(row: dict[str, Any], process: Process) -> Trace:
    """Record a row's figures in it; the trace that they come from."""
    trace, attention = recorded(row, process)
    figures = recorded_figures(trace, row["kind"])
    row["bytes"] = {k: v for k, v in figures.items() if not k.endswith(ROUNDED)}
    row["bytes_r512"] = {k.removesuffix(ROUNDED): v for k, v in figures.items() if k.endswith(ROUNDED)}
    row["module_levels"] = {short: levels(trace, phase) for short, phase in PHASES[row["kind"]].items()}
    row["sdpa"] = attention
    return trace


def parting(theirs: Trace, ours: Trace, context: int = 6) -> str:
    """Where two traces first allocate or free something else, phase by phase, deaths between two births sorted."""
    for (name, a, b), (_, c, d) in zip(phases(theirs), phases(ours), strict=True):
        if name.startswith("load"):
            continue
        left, right = _happenings(theirs, a, b), _happenings(ours, c, d)
        for number, (x, y) in enumerate(zip(left, right, strict=False)):
            if x[::2] != y[::2]:  # names of ops may differ
                around = [f"  same    {event}" for event in left[max(0, number - context) : number]]
                around += [f"  theirs  {event}" for event in left[number : number + context]]
                around += [f"  ours    {event}" for event in right[number : number + context]]
                return "\n".join([f"{name}, event {number}:", *around])
        if len(left) != len(right):
            more = [*left[len(right) :], *right[len(left) :]][:context]
            return f"{name}: {len(left)} events beside {len(right)}: {more}"
    return "the same, event by event"


def _happenings(trace: Trace, start: int, stop: int) -> list[tuple[int, str, str]]:
    found: list[tuple[int, str, str]] = []
    deaths: list[tuple[int, str, str]] = []
    for event in trace.events[start:stop]:
        a = trace.allocations[abs(event) - 1]
        said = (int(a.num_bytes), a.op.removesuffix(".Scalar"), layer_of(a.path))  # type: ignore[arg-type]
        if event < 0:
            deaths.append((-said[0], *said[1:]))
            continue
        found += [*sorted(deaths), said]
        deaths = []
    return found + sorted(deaths)


def main() -> None:
    """Fill the rows of a file."""
    path = Path(sys.argv[1])
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with Process() as process:
        for row in rows:
            if "bytes" in row:
                continue
            trace = fill(row, process)
            if "--beside" in sys.argv:
                print(row["id"], parting(trace, ghost(row)), flush=True)
    if "--beside" not in sys.argv:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
