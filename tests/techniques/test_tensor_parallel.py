"""Tensor parallelism beyond the recorded runs."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weigh
from weigh.errors import NotModelledError, UsageError
from weigh.recipes.trained import run
from weigh.recipes.training import Training
from weigh.trace.peak import phase_peaks

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 130,
    "hidden_size": 96,
    "intermediate_size": 144,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
}
PLAN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@settings(deadline=None, max_examples=10)
@given(st.sampled_from([2, 3, 4, 6]))
def test_the_ranks_together_hold_the_cut_layers_once_and_the_rest_each(ranks: int) -> None:
    whole = weigh.params(LLAMA).tensors()
    found = run(LLAMA, Training(batch=1, sequence=8, tensor=ranks, gpus_per_node=ranks, steps=1)).parameters
    for parameter in found:
        (name, *_) = parameter.names
        elements = 1
        for size in whole[name]:
            elements *= size
        cut = name.split(".")[-2] in PLAN
        assert parameter.numel * (ranks if cut else 1) == elements


def test_compressed_and_unrolled_runs_have_the_same_peaks() -> None:
    recipe = Training(batch=2, sequence=16, tensor=2, gpus_per_node=4, shard="fsdp2")
    short, long = run(LLAMA, recipe), run(LLAMA, recipe, unroll=True)
    assert len(short.trace.events) < len(long.trace.events)
    assert [p.peak for p in phase_peaks(short.trace)] == [p.peak for p in phase_peaks(long.trace)]


def test_ranks_that_do_not_divide_a_layer_are_refused() -> None:
    with pytest.raises(UsageError, match="5 ranks do not divide the 12 heads"):
        weigh.train(LLAMA, tensor=5, gpus_per_node=5)
    with pytest.raises(UsageError, match="4 ranks do not divide the 145 outputs"):
        weigh.train(LLAMA | {"intermediate_size": 145}, tensor=4, gpus_per_node=4)


def test_heads_stay_whole() -> None:
    with pytest.raises(UsageError, match=r"4 ranks do not divide the 2 heads of .*k_proj"):
        weigh.train(LLAMA | {"num_key_value_heads": 2}, tensor=4, gpus_per_node=4)


def test_no_rank_loads_the_whole_model() -> None:
    """As `from_pretrained(tp_plan="auto")` does not: weights that are cut are never there as a whole."""
    report = weigh.train(LLAMA, tensor=4, gpus_per_node=4, batch=1, sequence=8, optimizer="sgd", steps=1)
    cut = weigh.params(LLAMA).total * 4 // 2  # in fp32, most of it over four ranks
    assert phase_peaks(report.run.trace)[0].peak < cut


def test_a_family_without_a_plan_is_refused() -> None:
    with pytest.raises(NotModelledError, match="tensor parallelism of GPT2"):
        weigh.train("gpt2", tensor=2, gpus_per_node=2)
