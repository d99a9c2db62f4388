"""What a family runs where nobody chooses."""

import json
from pathlib import Path

import pytest

import weigh
from weigh import models
from weigh.errors import UsageError

DATA = Path(__file__).parents[1] / "data/witness"
ROWS = [json.loads(line) for file in sorted(DATA.glob("*.jsonl")) for line in file.read_text().splitlines()]


def config(family: str) -> dict[str, object]:
    return next(row["config"] for row in ROWS if row["config"]["model_type"] == family)


@pytest.mark.parametrize("family", sorted(models.EAGER_ONLY & {row["config"]["model_type"] for row in ROWS}))
def test_a_family_without_sdpa_runs_eagerly_and_the_report_says_so(family: str) -> None:
    assert models.default_attention(config(family)) == "eager"
    chosen = weigh.train(config(family), sequence=16, dtype="bf16")
    assert any(a.what == "eager attention" for a in chosen.assumptions)
    asked = weigh.train(config(family), sequence=16, dtype="bf16", attention="eager")
    assert chosen.peak == asked.peak
    assert not any(a.what == "eager attention" for a in asked.assumptions)
    with pytest.raises(UsageError, match="sdpa"):
        weigh.train(config(family), sequence=16, dtype="bf16", attention="sdpa")


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "granitemoe"])
def test_others_run_sdpa(family: str) -> None:
    report = weigh.train(config(family), sequence=16, dtype="bf16")
    assert report.peak == weigh.train(config(family), sequence=16, dtype="bf16", attention="sdpa").peak
