"""A tiny run of the workbench: what is measured is what is predicted, and a killed run goes on."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from weigh.cli import laboratory
from weigh.lab import run
from weigh.lab.bench import bench
from weigh.lab.report import LabReport, Line
from weigh.lab.techniques import Technique

pytestmark = pytest.mark.torch

DOCS = Path(__file__).parents[2] / "docs"
TINY = bench(layers=2, hidden=32, heads=2, sequence=64, batch=4, steps=4)


class Kept:
    """Remembers what was done before."""

    def __init__(self) -> None:
        self.before: list[str] = []
        self.now: list[str] = []

    def begins(self, technique: Technique, number: int, of: int) -> None:
        pass

    def step(self, done: int, of: int, loss: float) -> None:
        pass

    def ends(self, technique: Technique, line: Line, kept: bool) -> None:
        (self.before if kept else self.now).append(line.name)


def test_a_tiny_run_is_as_predicted_and_goes_on_where_it_was(tmp_path: Path) -> None:
    first = run.train(TINY, ("fp32",), folder=tmp_path)
    (fp32,) = first.lines
    seen = Kept()
    report = run.train(TINY, ("data-parallel",), folder=tmp_path, resume=True, progress=seen)
    assert seen.before == ["fp32"]
    assert seen.now == ["data-parallel"]
    jsonschema.validate(report.as_dict(), json.loads((DOCS / "schema/lab.json").read_text()))
    lines = {line.name: line for line in report.lines}
    assert lines["fp32"] == fp32
    for line in lines.values():
        assert abs(line.error) < 0.02, line
        assert sum(line.recorded.values()) == line.recorded_peak == pytest.approx(line.measured_peak, rel=0.02)
        assert len(line.losses) == TINY.steps
    shared = lines["data-parallel"]
    assert shared.loss == pytest.approx(fp32.loss, abs=1e-3), "the same batches, summed in another order"
    assert shared.recorded["communication"] == 4 * shared.parameters


def documented() -> list[str]:
    """The commands of the workbench that the documentation shows."""
    pages = (DOCS / "workbench.md", DOCS.parent / "README.md")
    return sorted({line for page in pages for line in re.findall(r"weigh lab train[^`\n#]*", page.read_text())})


@pytest.mark.parametrize("command", documented())
def test_documented_commands_are_understood(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Everything but the training itself, which takes minutes."""
    monkeypatch.chdir(tmp_path)
    example = LabReport.of(json.loads((DOCS / "workbench.json").read_text()))
    asked: list[Any] = []
    monkeypatch.setattr(run, "train", lambda *words: asked.append(words) or example)
    text, code = laboratory.answer("lab", shlex.split(command)[2:])
    assert code == 0
    assert asked or "usage" in text
