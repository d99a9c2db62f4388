"""A report's figures add up, and say the same as the trace does by other ways."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weigh
from weigh.recipes.trained import run
from weigh.report.run import RunReport
from weigh.report.work import flops_by_phase
from weigh.trace.peak import timeline

GPT2 = {"model_type": "gpt2", "vocab_size": 50, "n_positions": 64, "n_embd": 16, "n_layer": 6, "n_head": 2}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
REPORTS = {
    "gpt2": weigh.train(GPT2, batch=2, sequence=33),
    "llama": weigh.train(LLAMA, batch=1, sequence=20, dtype="bf16", checkpointing="full", clip=True),
    "autocast": weigh.train(LLAMA, batch=3, sequence=9, autocast="bf16", accumulation=2, implementation="fused"),
    "cpu": weigh.train(GPT2, sequence=16, kernels="cpu", attention="eager"),
    "generation": weigh.generate(LLAMA, prompt=12, new_tokens=5, batch=2, dtype="bf16"),
    "static": weigh.generate(GPT2, prompt=12, new_tokens=9, cache="static"),
}
every_report = pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)


@every_report
def test_the_peak_is_its_parts(report: RunReport) -> None:
    memory = report.memory
    assert sum(memory.by_purpose().values()) == report.peak
    assert sum(memory.by_component().values()) == report.peak
    assert sum(report.by_layer().values()) == report.peak
    assert sum(owner.num_bytes for owner in memory.owners(10_000)) == report.peak


@every_report
def test_the_peak_is_the_highest_of_its_phases(report: RunReport) -> None:
    answer = report.as_dict()
    assert answer["peak"]["bytes"] == max(phase["peak_bytes"] for phase in answer["phases"])
    assert answer["peak"]["unrounded_bytes"] == max(level for _, level in timeline(report.run.trace))
    assert 0 <= answer["peak"]["bytes"] - answer["peak"]["unrounded_bytes"] < 512 * len(report.run.trace.events)


@every_report
def test_a_chart_reaches_the_peak(report: RunReport) -> None:
    for width in (1, 7, 80, 100_000):
        series = report.series(width)
        assert max(series.totals) == report.peak == series.totals[series.peak_column]
        assert len(series.columns) <= width
        assert [phase for phase, _ in series.phases]


def test_layers_own_alike() -> None:
    layers = REPORTS["gpt2"].by_layer()
    assert set(layers) == {None, 0, 1, 2, 3, 4, 5}
    assert layers[1] == layers[2] == layers[3]


def test_components_are_those_of_the_roles() -> None:
    components = REPORTS["gpt2"].memory.by_component()
    assert {"embedding", "attention", "mlp", "norm", "loss"} <= set(components)
    assert "rotary" in REPORTS["llama"].memory.by_component()


def test_the_first_step_and_the_steady_state() -> None:
    report = REPORTS["gpt2"]
    assert report.first_step < report.steady_state == report.peak
    assert report.memory.peak_of(lambda p: p.mark.phase == "no such phase") == 0


@settings(max_examples=20, deadline=None)
@given(layers=st.integers(1, 12), batch=st.integers(1, 3), length=st.integers(2, 20))
def test_arithmetic_counts_every_block(layers: int, batch: int, length: int) -> None:
    config = {**LLAMA, "num_hidden_layers": layers}
    report = weigh.train(config, batch=batch, sequence=length)
    whole = run(config, report.run.recipe, unroll=True)
    assert flops_by_phase(report.run.trace, 1) == flops_by_phase(whole.trace, 1)
    weights = weigh.params(config).total - 50 * 16  # the embedding only looks up
    assert report.flops()["forward"] > 2 * weights * batch * length * 0.98


def test_the_cache_grows_by_a_constant() -> None:
    report = REPORTS["generation"]
    assert report.kv_cache_per_token == 7 * 2 * 2 * 4 * 2  # layers, keys and values, heads, width, bytes
    assert report.kv_cache % (2 * report.kv_cache_per_token) == 0


def test_what_is_frozen_is_not_trained() -> None:
    report = weigh.train(GPT2, freeze="all-but-head", sequence=8)
    parameters = report.as_dict()["parameters"]
    assert 0 < parameters["trainable"] < parameters["total"] == weigh.params(GPT2).total


def test_every_purpose_is_explained() -> None:
    for report in REPORTS.values():
        text = report.text(explain=True)
        for purpose in report.memory.by_purpose():
            assert purpose.replace("kv", "KV").rstrip("y") in text
        assert text.count("why: ") == text.count("effect: ") == len(report.all_assumptions())


@pytest.mark.parametrize("by", ["purpose", "component", "layer", "owner"])
def test_every_division_prints(by: str) -> None:
    for report in REPORTS.values():
        assert max(map(len, report.text(by=by).splitlines())) < 160


def test_what_keeps_nothing_says_so() -> None:
    kept, again = (weigh.generate(LLAMA | {"use_cache": use}, prompt=9, new_tokens=3) for use in (True, False))
    said = "no keys and values are kept"
    assert [any(a.what == said for a in found.all_assumptions()) for found in (kept, again)] == [False, True]
    assert kept.kv_cache > again.kv_cache == 0


@pytest.mark.parametrize(
    "how",
    [
        {"shard": "fsdp2", "gpus_per_node": 4},
        {"shard": "fsdp1", "gpus_per_node": 4},
        {"tensor": 2, "gpus_per_node": 2},
        {"quantization": "nf4"},
    ],
)
def test_parameters_are_the_model_s_whatever_divides_or_packs_them(how: dict[str, Any]) -> None:
    said = weigh.train(LLAMA, dtype="bf16", sequence=16, **how).as_dict()["parameters"]
    assert said["total"] == weigh.params(LLAMA).total
    assert not said["on_this_rank"]
    assert said["bytes"] < 2 * said["total"]
