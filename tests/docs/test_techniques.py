"""docs/techniques.md says what the code knows now of optimizers and techniques; reports name what is unverified."""

import runpy
from pathlib import Path

import pytest

from weigh import api
from weigh.optimizers import OPTIMIZERS
from weigh.report.witnessed import WITNESSES

ROOT = Path(__file__).parent.parent.parent


def test_the_page_is_up_to_date() -> None:
    page = runpy.run_path(str(ROOT / "tools/techniques.py"))["page"]()
    assert page == (ROOT / "docs/techniques.md").read_text(encoding="utf-8"), "run: python tools/techniques.py"


def test_witnesses_exist() -> None:
    named = {witness for known in WITNESSES.values() for witness in known.values() if witness}
    assert not [witness for witness in named if not (ROOT / witness).exists()]


def test_every_optimizer_has_a_row() -> None:
    assert set(WITNESSES["optimizer"]) == set(OPTIMIZERS)


@pytest.mark.parametrize("name", [n for n, witness in WITNESSES["optimizer"].items() if witness])
def test_a_witness_names_what_it_holds(name: str) -> None:
    witness = WITNESSES["optimizer"][name]
    assert witness is not None
    text = (ROOT / witness).read_text(encoding="utf-8")
    rows = {"test_recorded.py": "optimizers.jsonl", "test_in_backward.py": "in_backward.jsonl"}.get(Path(witness).name)
    if rows is not None:
        text = (ROOT / "tests/data" / rows).read_text(encoding="utf-8")
    assert f'"{name}"' in text


def test_reports_say_what_is_unverified() -> None:
    report = api.train("gpt2", sequence=16, optimizer="torchao_adamw_8bit", gpus_per_node=2, shard="fsdp2")
    told = [a.what for a in report.assumptions if a.what.startswith("unverified")]
    assert told == ["unverified: optimizer torchao_adamw_8bit"]
    report = api.train("gpt2", sequence=16, gpus_per_node=2, shard="fsdp1", limit_all_gathers=False)
    assert "unverified: limit all gathers" in [a.what.removesuffix(" False") for a in report.assumptions]
    assert not [a for a in api.train("gpt2", sequence=16).assumptions if a.what.startswith("unverified")]
