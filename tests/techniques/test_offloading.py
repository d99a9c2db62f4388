"""Activations on the host, against recorded steps of a small Llama on fake CUDA tensors.

A row of `data/offloading.jsonl` is what `tests/torch/support/real_offloading.py` printed.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from weigh.errors import NotModelledError
from weigh.ghost.repeat import unrolled
from weigh.recipes.settings import make
from weigh.recipes.trained import TrainingRun, run
from weigh.recipes.training import Training
from weigh.trace.peak import phase_peaks

ROWS = [json.loads(line) for line in (Path(__file__).parents[1] / "data" / "offloading.jsonl").read_text().splitlines()]
CONFIG = ROWS[0]["config"]
WORDS = {"batch": 2, "sequence": 48, "dtype": "bf16"}


def trained(**words: Any) -> TrainingRun:
    return run(CONFIG, make(Training, {**WORDS, **words}))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["case"])
def test_peaks_of_every_phase(row: dict[str, Any]) -> None:
    trace = run(row["config"], make(Training, {"traced": True, "labels_are_inputs": True, **row["settings"]})).trace
    assert [[p.mark.phase, p.before, p.peak] for p in phase_peaks(trace)] == row["peaks"]


@pytest.mark.parametrize(
    "words",
    [
        {"offload_activations": True},
        {"offload_activations": True, "checkpointing": "full"},
        {"checkpointing": "offloaded"},
    ],
)
def test_the_host_holds_it_whatever_is_compressed(words: dict[str, Any]) -> None:
    short = trained(**words)
    with unrolled():
        long = trained(**words)
    assert short.elsewhere == long.elsewhere
    (held,) = short.elsewhere.values()
    hidden = 2 * 48 * 64 * 2
    if words.get("checkpointing") == "offloaded":
        assert held == 4 * hidden  # each block's input
    assert held >= 4 * hidden  # type: ignore[operator]


def test_a_program_that_cannot_refuses() -> None:
    from weigh import api

    with pytest.raises(NotModelledError, match="activations on the host"):
        api.train("llama-3.2-1b", runtime="litgpt", sequence=64, offload_activations=True)
