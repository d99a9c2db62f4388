"""Liger's kernels in whole steps, beside Liger's own Python on fake CUDA tensors (`tools/record_liger.py`)."""

import json
from pathlib import Path
from typing import Any

import pytest

from weigh.dtypes import BFLOAT16, FLOAT16, FLOAT32, INT64
from weigh.errors import NotModelledError
from weigh.ghost import nn, ops
from weigh.ghost.state import recording
from weigh.kernels import kernels
from weigh.kernels.cut_cross_entropy import linear_causal_lm_loss
from weigh.recipes.settings import make
from weigh.recipes.trained import run
from weigh.recipes.training import Training
from weigh.techniques.awq import Awq, AwqLinear
from weigh.techniques.hqq import Hqq, HqqLinear
from weigh.trace.events import BACKWARD, FORWARD, LOAD, STEP
from weigh.trace.peak import phase_peaks

ALL = [json.loads(line) for line in (Path(__file__).parent.parent / "data/liger.jsonl").read_text().splitlines()]
ROWS, CUT, AWQ, HQQ = ([row for row in ALL if name in row] for name in ("config", "cut", "awq", "hqq"))
LIGER = {"fused_kernels": "liger", "loss": "liger_fused_linear", "compute_capability": "8.0"}
BESIDE = 16
"""Bytes that a recorded function keeps besides."""


def peaks(config: dict[str, Any], **settings: Any) -> list[int]:
    trace = run(config, make(Training, settings)).trace
    return [int(p.peak) for p in phase_peaks(trace) if p.mark.phase != LOAD]  # type: ignore[arg-type]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['config']['model_type']}-{row['settings']}")
def test_steps_are_those_of_liger(row: dict[str, Any]) -> None:
    found = peaks(row["config"], **{**LIGER, "traced": True, **row["settings"]})
    assert [peak + BESIDE for peak in found] == [peak for _, peak in row["peaks"]]


@pytest.mark.parametrize("row", CUT, ids=str)
def test_the_cut_loss_is_apple_s(row: dict[str, Any]) -> None:
    batch, length, width, words = row["cut"]
    with recording(kernels(traced=True), traced=True) as ledger:
        hidden = nn.parameter((batch, length, width), BFLOAT16)
        head = nn.parameter((words, width), FLOAT32 if row.get("head") else BFLOAT16)
        labels = ops.input_tensor((batch, length), INT64)
        for number in range(2):
            ledger.mark(FORWARD, number)
            loss = linear_causal_lm_loss(hidden, head, labels)
            ledger.mark(BACKWARD, number)
            loss.backward()
            del loss
            ledger.mark(STEP, number)
            hidden.grad = head.grad = None
        found = {f"{p.mark.phase} {p.mark.round}": int(p.peak) for p in phase_peaks(ledger.trace())}  # type: ignore[arg-type]
    assert [found[name] for name in ("forward 0", "backward 0")] == [peak for _, peak in row["peaks"][:2]]


@pytest.mark.parametrize("row", [*AWQ, *HQQ], ids=str)
def test_packed_layers_are_those_of_their_libraries(row: dict[str, Any]) -> None:
    batch, length, width_in, width_out = row.get("awq") or row["hqq"]
    dtype = BFLOAT16 if row.get("dtype", "bf16") == "bf16" else FLOAT16
    with recording(kernels(traced=True), traced=True) as ledger:
        linear = nn.Linear(width_in, width_out, FLOAT16 if "awq" in row else BFLOAT16, bool(row.get("bias")))
        layer = AwqLinear(linear, Awq()) if "awq" in row else HqqLinear(linear, Hqq())
        del linear
        x = nn.parameter((batch, length, width_in), dtype)
        ledger.mark(FORWARD, 0)
        loss = ops.sum(layer(x), (0, 1, 2))
        ledger.mark(BACKWARD, 0)
        loss.backward()
        found = {f"{p.mark.phase} {p.mark.round}": int(p.peak) for p in phase_peaks(ledger.trace())}  # type: ignore[arg-type]
    assert [found[name] for name in ("forward 0", "backward 0")] == [peak for _, peak in row["peaks"][:2]]


def test_before_ampere_the_weights_gradient_goes_through_a_matrix_in_fp32() -> None:
    row = ROWS[0]
    old, new = (
        peaks(row["config"], **{**LIGER, **row["settings"], "compute_capability": cc})[0] for cc in ("7.5", "8.0")
    )
    assert old - new == 6 * 1300 * 64


def test_other_families_are_refused() -> None:
    with pytest.raises(NotModelledError, match="liger's kernels for gpt2"):
        run({"model_type": "gpt2"}, make(Training, {"sequence": 8, "fused_kernels": "liger"}))
