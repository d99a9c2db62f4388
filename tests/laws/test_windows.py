"""Stacks whose layers differ in a pattern weigh what all their blocks weigh, on both sides of the window's edge."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from weigh.dtypes import BFLOAT16
from weigh.errors import InputError, NotModelledError, UsageError
from weigh.models.common import period_of
from weigh.recipes import generation, trained
from weigh.recipes.generation import Generation
from weigh.recipes.sweep import sweep
from weigh.recipes.training import Training
from weigh.trace.events import Trace
from weigh.trace.expand import expand
from weigh.trace.peak import phase_peaks

BASE = {
    "num_hidden_layers": 21,
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 90,
    "sliding_window": 16,
}
PATTERNS: dict[str, dict[str, Any]] = {
    "cohere2": {"num_key_value_heads": 4},
    "exaone4": {"sliding_window_pattern": 5},
    "gemma2": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window_pattern": 3},
    "mistral": {},
    "olmo3": {},
    "smollm3": {"use_sliding_window": True},
}
TRAININGS = {
    "plain": Training(),
    "checkpointed": Training(checkpointing="full", autocast=BFLOAT16),
}
GENERATIONS = {
    "dynamic": Generation(new_tokens=9),
    "static": Generation(new_tokens=9, cache="static"),
    "beams": Generation(new_tokens=4, beams=3),
}


def config_of(family: str) -> dict[str, Any]:
    return {"model_type": family} | BASE | PATTERNS[family]


def run(config: dict[str, Any], name: str, sequence: int, unroll: bool = False) -> Trace:
    attention = "eager" if config["model_type"] == "gemma2" else "sdpa"
    if name in TRAININGS:
        recipe = replace(TRAININGS[name], batch=2, sequence=sequence, attention=attention)
        return trained.run(config, recipe, unroll=unroll).trace
    generating = replace(GENERATIONS[name], batch=2, prompt=sequence, attention=attention)
    return generation.run(config, generating, unroll=unroll).trace


@pytest.mark.parametrize("sequence", [10, 40])
@pytest.mark.parametrize("name", [*TRAININGS, *GENERATIONS])
@pytest.mark.parametrize("family", PATTERNS)
def test_a_pattern_is_compressed_and_weighs_the_same(family: str, name: str, sequence: int) -> None:
    config = config_of(family)
    trace, whole = run(config, name, sequence), run(config, name, sequence, unroll=True)
    assert trace.repeats
    assert not whole.repeats
    assert [(p.peak, p.after) for p in phase_peaks(trace)] == [(p.peak, p.after) for p in phase_peaks(whole)]
    if name in TRAININGS:
        assert list(expand(trace).changes()) == list(whole.changes())


@pytest.mark.parametrize("name", ["plain", "dynamic", "static"])
def test_a_sweep_goes_over_the_edge_of_the_window(name: str) -> None:
    config = config_of("gemma3_text")
    sequences = np.array([1, 7, 8, 15, 16, 17, 40])
    if name in TRAININGS:
        swept = sweep(config, TRAININGS[name], sequence=sequences)
        alone = [trained.run(config, replace(TRAININGS[name], sequence=int(n))).trace for n in sequences]
    else:
        swept = sweep(config, GENERATIONS[name], prompt=sequences)
        alone = [generation.run(config, replace(GENERATIONS[name], prompt=int(n))).trace for n in sequences]
    assert swept.peak.tolist() == [max(p.peak for p in phase_peaks(trace)) for trace in alone]


def test_the_period_of_a_pattern() -> None:
    assert period_of(["a"] * 5) == 1
    assert period_of(["a", "a", "b"] * 3 + ["a"]) == 3
    assert period_of(["a", "a", "a", "b"]) == 4


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"sliding_window": 1}, NotModelledError),
        ({"sliding_window": None}, InputError),
        ({"layer_types": ["full_attention"]}, InputError),
        ({"layer_types": ["chunked_attention"] * 21}, NotModelledError),
        ({"use_bidirectional_attention": True}, NotModelledError),
        ({"rope_parameters": {"full_attention": {"rope_type": "dynamic"}, "sliding_attention": {}}}, NotModelledError),
        ({"num_attention_heads": 5}, InputError),
        ({"head_dim": None, "num_key_value_heads": 3}, InputError),
    ],
)
def test_what_is_not_modelled_is_refused(change: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        run(config_of("gemma3_text") | change, "plain", 8)


def test_gemma_2_has_no_sdpa() -> None:
    with pytest.raises(UsageError, match="eager"):
        trained.run(config_of("gemma2"), Training())


def test_an_assistant_cannot_take_tokens_back_from_a_window() -> None:
    draft = config_of("mistral") | {"num_hidden_layers": 2}
    with pytest.raises(NotModelledError):
        generation.run(config_of("mistral"), Generation(prompt=8, new_tokens=4), assistant=draft)
