"""Optimizers against recorded steps of the real ones on fake CUDA tensors, birth by birth.

A row of `data/optimizers.jsonl` is what `tests/torch/support/real_optimizers.py` answered for the packages it names.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from steps import levels

DATA = Path(__file__).parents[1] / "data"
ROWS = [json.loads(line) for line in (DATA / "optimizers.jsonl").read_text().splitlines()]


def named(row: dict[str, Any]) -> str:
    return " ".join(str(value) for value in row["choice"].values())


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_a_step(row: dict[str, Any]) -> None:
    assert levels(row["choice"], row["parameters"], row["steps"]) == row["levels"]
