"""Optimizers whose packages the tests do not install, against recorded steps of the real ones on fake CUDA tensors.

A row of `data/optimizers.jsonl` is what `tests/torch/support/real_optimizers.py` answered for the packages it names.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from steps import levels

ROWS = {
    row["choice"]["name"]: row
    for row in map(json.loads, (Path(__file__).parents[1] / "data" / "optimizers.jsonl").read_text().splitlines())
}


@pytest.mark.parametrize("name", ROWS)
def test_a_step(name: str) -> None:
    row: dict[str, Any] = ROWS[name]
    assert levels(row["choice"], row["parameters"], row["steps"]) == row["levels"]
