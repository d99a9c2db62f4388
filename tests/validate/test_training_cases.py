"""What others measured on GPUs, each case within the tolerance that stands on it."""

import json
from pathlib import Path
from typing import Any

import pytest

from weigh.validate.cases import predict_case

LINES = (Path(__file__).parents[1] / "data" / "training_cases.jsonl").read_text(encoding="utf-8").splitlines()
CASES: list[dict[str, Any]] = [json.loads(line) for line in LINES]


@pytest.mark.parametrize("case", CASES, ids=[c["id"] for c in CASES])
def test_a_measured_training_is_met(case: dict[str, Any]) -> None:
    asked = {k: v for k, v in case.items() if k not in ("source", "within")}
    asked["measured"] = dict.fromkeys(case["measured"], 0)  # an answer is no input
    predicted = predict_case(asked, case["id"])
    assert predicted.keys() == case["measured"].keys()
    for metric, measured in case["measured"].items():
        assert predicted[metric] == pytest.approx(measured, rel=case["within"])
