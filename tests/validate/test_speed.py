"""Predicted speeds beside published ones: the page, the split, the errors of the half that nothing was fitted to."""

import importlib.util
import json
import statistics
from pathlib import Path
from types import ModuleType

import pytest

from weigh.hardware.efficiency import measured
from weigh.validate.speed import BATCH, DECODE, PREFILL, Case, predict, read

ROOT = Path(__file__).parents[2]
CASES = read(ROOT / "tests/data/speed/cases.jsonl")
SOURCES = json.loads((ROOT / "tests/data/speed/sources.json").read_text())


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("speed_tool", ROOT / "tools/speed.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_and_the_table_are_what_the_cases_say(tool: ModuleType) -> None:
    assert tool.main(["--check"]) == 0


def test_cases_are_well_formed() -> None:
    assert len({c.id for c in CASES}) == len(CASES) >= 15
    for case in CASES:
        assert case.source in SOURCES
        assert case.phase in (DECODE, PREFILL, BATCH)
        assert case.on.name == case.device
        assert case.seconds > 0
    for source in SOURCES.values():
        assert source["url"].startswith("https://")


def test_half_of_the_cases_is_held_out() -> None:
    held_out = sum(not c.fitted for c in CASES)
    assert 0.4 < held_out / len(CASES) < 0.6


def _off(case: Case) -> float:
    return abs(predict(case, measured()[case.engine].on(case.on)) / case.seconds - 1)


def test_single_users_decoding_is_within_15_percent() -> None:
    """Of dense models, on one device, in the half that nothing was fitted to."""
    out = [c for c in CASES if c.phase == DECODE and c.tensor == 1 and not c.fitted]
    assert len(out) >= 15
    errors = [_off(c) for c in out]
    assert statistics.median(errors) < 0.06
    assert sum(e <= 0.15 for e in errors) >= 0.92 * len(errors)
    own = [_off(c) for c in out if c.on.generation in measured()[c.engine].decode]
    assert sum(e <= 0.15 for e in own) >= 0.98 * len(own)


def test_nothing_is_faster_than_the_roofline() -> None:
    """Except what the figures of a device do not cover: prompts on cards whose arithmetic is a lower bound."""
    for case in CASES:
        if case.phase == DECODE:
            assert predict(case) < 1.02 * case.seconds, case.id


def test_the_range_holds_most_of_the_cases() -> None:
    inside = 0
    for case in CASES:
        reached = measured()[case.engine].on(case.on)
        ratio = predict(case, reached) / case.seconds
        inside += 0.99 * reached.low <= ratio <= 1.01 * reached.high
    assert inside >= 0.75 * len(CASES)
