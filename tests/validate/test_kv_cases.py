"""Caches of llama.cpp as its logs printed them, predicted from shapes.

`tests/data/measured/llama_cpp.jsonl` holds published cases: settings, the model's GGUF keys, and what was printed. Each
figure of a cache is exact within the rounding of what was printed, or is listed with its reason.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from weigh.errors import WeighError
from weigh.validate.cases import predict_case
from weigh.validate.rounding import rounding

LINES = (Path(__file__).parents[1] / "data/measured/llama_cpp.jsonl").read_text(encoding="utf-8").splitlines()
CASES: dict[str, dict[str, Any]] = {row["id"]: row for row in map(json.loads, LINES)}
NOTES = json.loads((Path(__file__).parents[1] / "data/measured/notes.json").read_text(encoding="utf-8"))
REASONS = [name for name in NOTES if name in CASES]


@pytest.mark.parametrize("name", [name for name in CASES if name not in REASONS])
def test_the_figures_of_a_case(name: str) -> None:
    row = CASES[name]
    predicted = predict_case(row, name)
    for metric in (m for m in row["measured"] if re.fullmatch(r"(kv_cache|recurrent_state)(_[kvrs]|_full|_swa)?", m)):
        assert abs(predicted[metric] - row["measured"][metric]) <= rounding(row, metric), metric


@pytest.mark.parametrize("name", REASONS)
def test_what_is_not_predicted_is_known_to_be_so(name: str) -> None:
    row = CASES[name]
    try:
        predicted = predict_case(row, name)
    except WeighError:
        return
    missed = [
        k for k in predicted if k in row["measured"] and abs(predicted[k] - row["measured"][k]) > rounding(row, k)
    ]
    assert missed, "it is predicted now: take it from the list"


def test_an_old_cache_was_in_single_precision() -> None:
    row = CASES["lc-054"]
    assert abs(2 * predict_case(row, "lc-054")["kv_cache"] - row["measured"]["kv_cache"]) <= rounding(row, "kv_cache")


def test_how_many_cases_there_are() -> None:
    assert len(CASES) == len(LINES) >= 32
    assert set(REASONS) <= set(CASES)
    assert len(REASONS) <= 1
