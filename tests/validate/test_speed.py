"""Predicted speeds beside published ones: the page, the split, the errors of the half that nothing was fitted to."""

import importlib.util
import json
import statistics
from pathlib import Path
from types import ModuleType

import pytest

from weigh.hardware.efficiency import EXPERTS, USERS, measured
from weigh.validate.speed import BATCH, DECODE, PREFILL, STEP, Case, predict, read

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
        assert case.phase in (DECODE, PREFILL, BATCH, STEP)
        assert case.on.name == case.device
        assert case.seconds > 0
    for source in SOURCES.values():
        assert source["url"].startswith("https://")


def test_half_of_the_cases_is_held_out() -> None:
    known = [c for c in CASES if not c.apart]
    assert 0.4 < sum(not c.fitted for c in known) / len(known) < 0.6
    assert not any(c.fitted for c in CASES if c.has_experts or c.phase == STEP)


def _off(case: Case) -> float:
    return abs(predict(case, measured()[case.engine].on(case.on)) / case.seconds - 1)


def test_single_users_decoding_is_within_15_percent() -> None:
    """Of dense models, on one device, in the half that nothing was fitted to."""
    out = [c for c in CASES if c.phase == DECODE and c.tensor == 1 and not c.fitted and not c.has_experts]
    assert len(out) >= 15
    errors = [_off(c) for c in out]
    assert statistics.median(errors) < 0.06
    assert sum(e <= 0.15 for e in errors) >= 0.9 * len(errors)
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
        program = measured()[case.engine]
        reached = program.on(case.on)
        low, high = reached.low, reached.high
        if case.has_experts or case.phase in (BATCH, STEP):
            low, high = program.ranges[EXPERTS if case.has_experts else USERS]
        ratio = predict(case, reached) / case.seconds
        inside += 0.99 * low <= ratio <= 1.01 * high
    assert inside >= 0.75 * len(CASES)


def test_many_tokens_at_a_time_read_the_experts_that_are_expected() -> None:
    """From 16 tokens on most of the time goes to experts: 8 of 128 for each token, at random."""
    cases = [c for c in CASES if c.phase == STEP and c.has_experts and c.device == "rtx-4090" and c.batch >= 16]
    assert len(cases) == 3
    assert all(_off(c) < 0.1 for c in cases)


def test_experts_and_the_rest_are_stored_in_formats_of_their_own() -> None:
    """gpt-oss-20b has its experts alone in 4.25 bits: the file has 11.27 GiB, of which a token reads 2.5 GB."""
    cases = [c for c in CASES if c.model == "gpt-oss-20b" and c.phase == DECODE]
    assert sorted(round(_off(c), 2) for c in cases)[:4] == pytest.approx([0.0, 0.04, 0.05, 0.05], abs=0.011)


def test_generation_op_by_op_is_in_the_range_after_short_prompts(tool: ModuleType) -> None:
    rows = [json.loads(line) for line in (ROOT / "tests/data/speed/eager.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    for row in rows:
        assert row["source"] in SOURCES
        if row["prompt"] == 1:
            slow, fast = tool.between(row)
            assert slow <= row["measured"] <= fast
