"""Single ops, forward and backward, beside what Liger's benchmarks measured of them on an A100 (`kernels.jsonl`).

The benchmarks (liger-kernel, benchmark/scripts) build both providers' modules, run ten times without dropping the
gradients, and print `max_memory_allocated`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weigh.dtypes import BFLOAT16, FLOAT32, INT64
from weigh.ghost import nn, ops
from weigh.ghost.ops.table import apply
from weigh.ghost.state import recording
from weigh.ghost.tensor import Tensor
from weigh.kernels import kernels, liger
from weigh.kernels.workspaces import Workspaces
from weigh.trace.events import BACKWARD, FORWARD
from weigh.trace.peak import phase_peaks

ROWS = [json.loads(line) for line in (Path(__file__).parent.parent / "data/kernels.jsonl").read_text().splitlines()]

Forward = Callable[[], Tensor]


def trained(*shape: int, dtype: Any) -> Tensor:
    made = nn.parameter(shape, dtype)
    made.requires_grad = True
    return made


def cross_entropy(provider: str, shapes: dict[str, int]) -> Forward:
    rows = shapes["B"] * shapes["T"]
    logits, target = trained(rows, shapes["V"], dtype=FLOAT32), ops.input_tensor((rows,), INT64)
    function = liger.cross_entropy if provider == "liger" else ops.cross_entropy
    return lambda: function(logits, target)


def fused_linear_cross_entropy(provider: str, shapes: dict[str, int]) -> Forward:
    width, rows = shapes["H"], shapes["BT"]
    heads = {name: nn.Linear(width, shapes["V"], BFLOAT16) for name in ("liger", "huggingface")}
    hidden, target = trained(rows, width, dtype=BFLOAT16), ops.input_tensor((rows,), INT64)

    def forward() -> Tensor:
        kept = heads  # both are there
        if provider == "liger":
            return apply(liger.LigerFusedLinearCrossEntropy, hidden, kept[provider].weight, target)  # type: ignore[no-any-return]
        logits = kept[provider](hidden)
        return ops.cross_entropy(logits, target)

    return forward


def measured(row: dict[str, Any]) -> int:
    with recording(kernels()) as ledger:
        if "linear" in row["op"]:
            ledger.on_phase = Workspaces("8.0").begin
        forward: Forward = globals()[row["op"]](row["provider"], row["shapes"])
        for number in range(3):
            ledger.mark(FORWARD, number)
            loss = forward()
            ledger.mark(BACKWARD, number)
            loss.backward()
        return max(int(p.peak) for p in phase_peaks(ledger.trace(), rounded=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("row", ROWS, ids=[row["id"] for row in ROWS])
def test_within_a_thousandth_of_a_gpu(row: dict[str, Any]) -> None:
    assert measured(row) == pytest.approx(row["bytes"], rel=1e-3)
