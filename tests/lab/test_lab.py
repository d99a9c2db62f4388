"""The workbench without PyTorch: its text, its table, what is predicted of it, its pictures, and what it refuses."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest

from weigh.cli import main
from weigh.cli.laboratory import Bars
from weigh.errors import InputError, UsageError, WeighError
from weigh.lab import picture
from weigh.lab.bench import SUITES, bench
from weigh.lab.loops import peak, predict
from weigh.lab.page import page
from weigh.lab.report import LabReport
from weigh.lab.run import _prepare
from weigh.lab.techniques import SERVED, TECHNIQUES, chosen
from weigh.lab.text import read

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE = json.loads((DOCS / "workbench.json").read_text(encoding="utf-8"))
REPORT = LabReport.of(EXAMPLE)


def test_text_is_divided_and_nothing_of_it_is_in_both_parts(tmp_path: Path) -> None:
    file = tmp_path / "tale.txt"
    file.write_bytes(bytes(range(32, 127)) * 40)
    text = read(str(file), 8)
    assert text.training + text.held_out == file.read_bytes()
    assert len(text.training) == 9 * len(text.held_out)
    library = read(None, 128)
    assert library.held_out[:2000] not in library.training
    assert read(None, 128).digest == library.digest != text.digest


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b" \n ", "is empty"),
        (b"\x89PNG\r\n\x1a\n" * 900, "is not text: byte 0 (0x89) begins no character"),
        (b"words\0" * 900, "is not text: byte 5 is zero"),
        (b"short", "has only 5 bytes. 2,880 bytes are enough for sequences of 8"),
        (None, "cannot be read (No such file"),
    ],
)
def test_text_that_is_none(content: bytes | None, says: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError) as raised:
        read(str(file), 8)
    assert says in str(raised.value)


@pytest.mark.parametrize("model", ["llama", "gpt"])
def test_every_technique_is_predicted_or_refused_by_name(model: str) -> None:
    refused = {}
    for technique in TECHNIQUES.values():
        try:
            whole, _, parts = peak(predict(bench(model=model), technique))
        except WeighError as error:
            refused[technique.name] = str(error)
            continue
        assert sum(parts.values()) == whole
        if technique.group != SERVED:
            assert parts["activation"] + parts.get("temporary", 0) >= whole / 2, technique.name
    assert set(refused) == ({"tensor-parallel", "nf4"} if model == "gpt" else set())


def test_whoever_is_wanted_runs_before() -> None:
    for names in ((), *((name,) for name in TECHNIQUES)):
        order = [technique.name for technique in chosen(names)]
        for technique in chosen(names):
            for other in (*technique.wants, technique.compared_with):
                assert order.index(other) <= order.index(technique.name)


def test_the_same_run_goes_on_and_no_other(tmp_path: Path) -> None:
    text, small = read(None, 64), bench(sequence=64)
    _prepare(tmp_path, small, text, resume=False)
    with pytest.raises(UsageError, match="has a run already"):
        _prepare(tmp_path, small, text, resume=False)
    _prepare(tmp_path, small, text, resume=True)
    with pytest.raises(UsageError, match="another bench: seed was 0, and is 7"):
        _prepare(tmp_path, replace(small, seed=7), text, resume=True)


WRONG = {
    ("lab", "serve"): "there is no 'serve'",
    ("lab", "train", "--suite", "slow"): "Use quick or full",
    ("lab", "train", "--technique", "lorra"): "Did you mean lora?",
    ("lab", "train", "--model", "mamba"): "Use llama or gpt",
    ("lab", "train", "--batch", "3"): "Give a multiple of 2",
    ("lab", "train", "--heads", "3"): "3 heads in a width of 128",
    ("lab", "train", "--steps", "1"): "It must be 2 at least",
    ("lab", "train", "--steps", "many"): "'many' is no whole number",
    ("lab", "train", "--stepps", "3"): "Did you mean --steps",
}


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_what_cannot_be_asked(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert WRONG[words] in capsys.readouterr().err


def test_help_names_every_technique(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab"]) == 0
    assert main(["lab", "train", "--help"]) == 0
    said = "".join(capsys.readouterr().out.split())
    assert all(name in said for name in (*TECHNIQUES, *SUITES))


# -- the example that is kept in the documentation
def test_the_example_is_what_the_code_predicts_now() -> None:
    for line in REPORT.done():
        assert peak(predict(REPORT.bench, line.technique))[0] == line.predicted_peak, line.name


def test_the_example_shows_what_is_promised() -> None:
    jsonschema.validate(EXAMPLE, json.loads((DOCS / "schema/lab.json").read_text()))
    assert json.loads(json.dumps(REPORT.as_dict())) == {**EXAMPLE, "version": REPORT.as_dict()["version"]}
    assert [line.name for line in REPORT.done()] == list(TECHNIQUES)
    for line in REPORT.done():
        assert abs(line.error) < 0.02, line.name
        if line.technique.group != SERVED:
            assert line.activation_share >= 0.5
            assert len(line.losses) == REPORT.bench.steps
            assert line.loss < line.before
    loss = {line.name: line.loss for line in REPORT.done()}
    for same in ("checkpointing", "accumulation", "data-parallel", "fsdp2", "tensor-parallel"):
        assert loss[same] == pytest.approx(loss["fp32"], abs=0.06), same
    assert loss["checkpointing"] == loss["fp32"], "the same arithmetic in the same order"
    assert loss["teacher"] < loss["fp32"]
    assert loss["fine-tuning"] < loss["fp32-inference"] <= loss["nf4"] + 0.001


def test_the_page_is_what_the_example_says() -> None:
    tool = runpy.run_path(str(DOCS.parent / "tools/workbench.py"))
    for file, text in tool["written"]().items():
        assert file.read_text(encoding="utf-8") == text, "run: python tools/workbench.py --page"


def test_pictures_and_page_are_well_formed_and_name_everything() -> None:
    for drawn in (picture.memory(REPORT), picture.losses(REPORT)):
        root = ElementTree.fromstring(drawn)
        words = " ".join(node.text or "" for node in root.iter() if node.tag.endswith("text"))
        assert "MiB at the peak" in words or "nats a byte" in words
        assert "prefers-color-scheme: dark" in drawn
        for rect in root.iter("{http://www.w3.org/2000/svg}rect"):
            assert float(rect.get("width", 0)) >= 0
    whole = page(REPORT)
    tables = list(ElementTree.fromstring(whole.partition("\n")[2]).iter("table"))
    assert sum(len(table) - 1 for table in tables) == len(REPORT.done())
    assert all(name in whole for name in TECHNIQUES)
    assert "http" not in whole.replace("http://www.w3.org/2000/svg", "")
    assert all(name in REPORT.text() for name in TECHNIQUES)
    assert max(map(len, REPORT.text().splitlines())) <= 100


class _Out:
    def __init__(self, terminal: bool) -> None:
        self.terminal, self.text = terminal, ""

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


def test_bars_on_a_terminal_and_lines_elsewhere() -> None:
    line = REPORT.lines[0]
    for terminal in (True, False):
        out = _Out(terminal)
        bars = Bars(out)
        bars.begins(line.technique, 1, 20)
        bars.step(60, 120, 2.5)
        bars.step(120, 120, 2.25)
        bars.ends(line.technique, line, kept=True)
        assert ("█" in out.text and "120/120  loss 2.250" in out.text) == terminal
        assert out.text.count("\n") == 1
        assert "(kept)" in out.text
