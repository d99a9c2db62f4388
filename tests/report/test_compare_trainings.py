"""Two recipes side by side: every byte of the difference has an owner."""

import json
from pathlib import Path

import jsonschema
import pytest

import weigh
from weigh.api import compare_trainings
from weigh.cli import main

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/schema/compare_trainings.json").read_text(encoding="utf-8"))
PLAIN = {"model": "gpt2", "batch": 2, "sequence": 64, "dtype": "bf16"}


def recipe(folder: Path, name: str, **changed: object) -> str:
    path = folder / name
    path.write_text(json.dumps(PLAIN | changed), encoding="utf-8")
    return str(path)


def test_the_difference_is_shared_out_among_tensors(tmp_path: Path) -> None:
    a, b = recipe(tmp_path, "a.json"), recipe(tmp_path, "b.json", checkpointing="full", optimizer="sgd")
    found = compare_trainings(a, b)
    assert found.settings() == {"optimizer": ("adamw", "sgd"), "checkpointing": ("none", "full")}
    left, right = found.figures()["peak"]
    assert (left, right) == tuple(weigh.train(job=weigh.job(path)).peak for path in (a, b))
    assert sum(y - x for x, y in found.owners().values()) == right - left
    jsonschema.validate(found.as_dict(), SCHEMA)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = recipe(tmp_path, "a.json"), recipe(tmp_path, "b.json", batch=4)
    assert main(["compare", a, b, "--svg", str(tmp_path / "both.svg")]) == 0
    assert "batch  2  4" in capsys.readouterr().out
    assert "<svg" in (tmp_path / "both.svg").read_text(encoding="utf-8")
    assert main(["compare", a, a]) == 0
    assert "Their settings agree." in capsys.readouterr().out
    assert main(["compare", a, "gpt2"]) == 2
    assert "describes no training" in capsys.readouterr().err


def test_adapters_are_told_apart_by_their_own_settings(tmp_path: Path) -> None:
    small, large = (recipe(tmp_path, f"{rank}.json", lora={"rank": rank, "targets": ["c_attn"]}) for rank in (4, 8))
    found = str(compare_trainings(small, large))
    assert "lora rank  4  8" in found
    assert "targets" not in found
    assert "lora  none  lora of rank 8" in str(compare_trainings(recipe(tmp_path, "none.json"), large))
