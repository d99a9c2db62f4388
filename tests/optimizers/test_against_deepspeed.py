"""ZeRO against DeepSpeed itself on the CPU: the level before each phase, and its peak.

A row of `data/deepspeed.jsonl` is what `tests/torch/support/real_deepspeed.py` printed. On the CPU what is offloaded
stands in the same memory, so that host and device are held against the real thing together.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from weigh.recipes.settings import make
from weigh.recipes.trained import run
from weigh.recipes.training import Training
from weigh.trace.events import LOAD
from weigh.trace.peak import phase_peaks

ROWS = [json.loads(line) for line in (Path(__file__).parents[1] / "data" / "deepspeed.jsonl").read_text().splitlines()]
CONFIG = {"model_type": "gpt2", "n_layer": 5, "n_embd": 64, "n_head": 2, "vocab_size": 900, "n_positions": 64}
SCALARS = 48
"""Bytes of the loss' and AdamW's numbers, which DeepSpeed and the optimizer keep as tensors here."""


def words(row: dict[str, Any]) -> dict[str, Any]:
    """The case in our words."""
    zero = dict(row["zero"])
    found = {
        "shard": f"zero{zero.pop('stage')}",
        "offload_optimizer": "offload_optimizer" in zero,
        "offload_parameters": "offload_param" in zero,
        **{
            f"zero_{name.removeprefix('stage3_').removeprefix('zero_')}": zero[name]
            for name in zero
            if name[:3] != "off"
        },
    }
    return {**found, **{name: row[name] for name in ("accumulation", "checkpointing", "rank") if name in row}}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["case"])
def test_every_phase(row: dict[str, Any]) -> None:
    plain = {"sequence": 16, "kernels": "cpu", "optimizer": "adamw", "implementation": "forloop", "traced": True}
    recipe = make(
        Training, {**plain, "dtype": row.get("dtype", "bf16"), "gpus_per_node": row.get("world", 2), **words(row)}
    )
    found = phase_peaks(run({**CONFIG, **row.get("config", {})}, recipe).trace)
    real = row["peaks"]
    assert real[0][0] == found[0].mark.phase == LOAD
    assert [r[0] for r in real[1:]] == [p.mark.phase for p in found[1:]]
    for (phase, before, peak), ours in zip(real[1:], found[1:], strict=True):
        assert 0 <= before - int(ours.before) <= SCALARS, phase  # type: ignore[arg-type]
        assert 0 <= peak - int(ours.peak) <= SCALARS, phase  # type: ignore[arg-type]
