"""Optimizers that step in the backward pass, against recorded steps of a small Llama on fake CUDA tensors.

A row of `data/in_backward.jsonl` is what `tests/torch/support/real_in_backward.py` printed.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from weigh.errors import NotModelledError, UsageError
from weigh.recipes.settings import make
from weigh.recipes.trained import run
from weigh.recipes.training import Training
from weigh.trace.events import LOAD
from weigh.trace.peak import phase_peaks

ROWS = [
    json.loads(line) for line in (Path(__file__).parents[1] / "data" / "in_backward.jsonl").read_text().splitlines()
]
PLAIN = {"batch": 2, "sequence": 48, "traced": True, "labels_are_inputs": True}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["case"])
def test_peaks_of_every_phase(row: dict[str, Any]) -> None:
    trace = run(row["config"], make(Training, PLAIN | row["settings"])).trace
    found = [[p.mark.phase, p.before, p.peak] for p in phase_peaks(trace)]
    # A tied model that is built on the device drops an output embedding as it loads.
    first = 1 if row["config"]["tie_word_embeddings"] else 0
    assert found[first:] == row["peaks"][first:]
    assert row["peaks"][0][0] == LOAD


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        ({"optimizer": "lomo", "loss_scaling": True}, UsageError, "once and alone"),
        ({"optimizer": "adamw", "optimizer_in_backward": True, "clip": True}, UsageError, "once and alone"),
        ({"optimizer": "lomo", "optimizer_in_backward": True}, UsageError, "hooks of its own"),
        ({"optimizer": "lomo", "shard": "fsdp2", "gpus_per_node": 2}, NotModelledError, "over shards"),
        ({"optimizer": "adalomo", "gpus_per_node": 2}, NotModelledError, "before gradients are summed"),
        ({"optimizer": "galore", "shard": "zero2", "gpus_per_node": 2}, NotModelledError, "over shards"),
        ({"optimizer": "soap", "dtype": "bf16"}, UsageError, "averages in fp32"),
        ({"optimizer": "galore", "projection_targets": "wings"}, UsageError, "wings"),
        ({"optimizer": "galore", "projection_targets": "("}, UsageError, "no pattern"),
    ],
)
def test_what_cannot_be_is_refused(words: dict[str, Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        run(ROWS[0]["config"], make(Training, PLAIN | words))
