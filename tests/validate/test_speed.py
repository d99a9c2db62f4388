"""Predicted speeds beside published ones: the page, the split, the errors of the half that nothing was fitted to."""

import importlib.util
import json
import statistics
from pathlib import Path
from types import ModuleType

import pytest

from weigh.hardware.efficiency import measured
from weigh.validate.speed import BATCH, DECODE, FAMILY, PREFILL, STEP, Case, extra_kernels, fit, predict, read

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


ALONE = [c for c in CASES if c.phase == DECODE and c.tensor == 1 and c.batch == 1 and not c.has_experts]


def test_single_users_decoding_is_within_15_percent() -> None:
    """Of dense models, on one device, in the half that nothing was fitted to."""
    errors = [_off(c) for c in ALONE if not c.fitted]
    assert len(errors) >= 90
    assert statistics.median(errors) < 0.06
    assert sum(e <= 0.15 for e in errors) >= 0.85 * len(errors)


def test_so_is_the_middle_case_of_each_program_on_each_generation() -> None:
    """But vLLM's before version 1 on Hopper, which waits for its host, and llama.cpp's on Intel."""
    groups: dict[tuple[str, str], list[float]] = {}
    for case in ALONE:
        if not case.fitted:
            groups.setdefault((case.engine, case.on.generation), []).append(_off(case))
    off = {group for group, errors in groups.items() if len(errors) > 1 and statistics.median(errors) > 0.15}
    assert off == {("vLLM V0", "Hopper")}


def test_one_bad_measurement_moves_nothing() -> None:
    """One A100 took 30.6 ms for what others took 13 to 18 ms for, and was in the fitted half."""
    (bad,) = (c for c in CASES if c.id == "vllm-0.7/a100-80gb/llama-3.1-8b/bf16/tpot-28650")
    assert bad.fitted
    like = [c for c in CASES if FAMILY.get(c.engine) == FAMILY[bad.engine]]
    without, with_it = (fit([c for c in like if c != left])["vLLM V0"] for left in (bad, None))
    assert with_it.on(bad.on).bandwidth == pytest.approx(without.on(bad.on).bandwidth, rel=0.02)


def test_experts_wait_for_kernels_of_their_own() -> None:
    """Without them predictions are optimistic throughout; nothing is fitted to such models."""
    cases = [c for c in CASES if c.has_experts and c.phase == DECODE and c.batch == 1]
    before, after = [], []
    for case in cases:
        reached = measured()[case.engine].on(case.on)
        seconds = predict(case, reached)
        after.append(seconds / case.seconds - 1)
        before.append(after[-1] - extra_kernels(case.model) * reached.per_kernel / case.seconds)
    assert len(cases) >= 30
    assert statistics.mean(before) < -0.15
    assert abs(statistics.mean(after)) < 0.1
    alone = [(old, new) for c, old, new in zip(cases, before, after, strict=True) if c.tensor == 1]
    old, new = (statistics.median(map(abs, some)) for some in zip(*alone, strict=True))
    assert new < 0.15 < 0.25 < old


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
        low, high = (reached.low, reached.high) if case.kind is None else program.ranges[case.kind]
        ratio = predict(case, reached) / case.seconds
        inside += 0.99 * low <= ratio <= 1.01 * high
    assert inside >= 0.75 * len(CASES)


def test_many_tokens_at_a_time_read_the_experts_that_are_expected() -> None:
    """From 16 tokens on most of the time goes to experts: 8 of 128 for each token, at random."""
    cases = [c for c in CASES if c.phase == STEP and c.has_experts and c.device == "rtx-4090" and c.batch >= 16]
    assert len(cases) == 3
    assert all(_off(c) < 0.15 for c in cases)


def test_experts_and_the_rest_are_stored_in_formats_of_their_own() -> None:
    """gpt-oss-20b has its experts alone in 4.25 bits: the file has 11.27 GiB, of which a token reads 2.5 GB."""
    cases = [c for c in CASES if c.model == "gpt-oss-20b" and c.phase == DECODE]
    assert len(cases) == 5
    assert sorted(_off(c) for c in cases)[3] < 0.13


def test_generation_op_by_op_is_in_the_range_after_short_prompts(tool: ModuleType) -> None:
    rows = [json.loads(line) for line in (ROOT / "tests/data/speed/eager.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    for row in rows:
        assert row["source"] in SOURCES
        if row["prompt"] == 1:
            slow, fast = tool.between(row)
            assert slow <= row["measured"] <= fast
