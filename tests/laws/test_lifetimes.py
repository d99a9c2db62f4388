"""What a run leaves behind: the same trace every time, nothing alive once it is dropped, and no state changed."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from weigh import models
from weigh.dtypes import BFLOAT16, FLOAT32, INT64
from weigh.errors import WeighError
from weigh.ghost import ops
from weigh.ghost.ledger import Ledger
from weigh.ghost.state import State, recording, state
from weigh.kernels import kernels
from weigh.recipes import generation, trained
from weigh.recipes.generation import Generation
from weigh.recipes.training import Training
from weigh.trace.events import FORWARD, Trace
from weigh.trace.expand import expand
from weigh.trace.peak import phase_peaks

CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_layer": 5, "n_embd": 48, "n_head": 3, "vocab_size": 90, "n_positions": 2048},
    "llama": {
        "model_type": "llama",
        "num_hidden_layers": 5,
        "hidden_size": 48,
        "intermediate_size": 100,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 90,
    },
}
RECIPES: dict[str, Training | Generation] = {
    "plain": Training(2, 16),
    "autocast": Training(2, 16, autocast=BFLOAT16, clip=True, accumulation=2),
    "eager": Training(2, 16, attention="eager", optimizer="sgd", momentum=0.9, set_to_none=False),
    "checkpointed": Training(2, 16, checkpointing="full", autocast=BFLOAT16),
    "reentrant": Training(2, 16, checkpointing="reentrant", implementation="forloop"),
    "traced on the cpu": Training(2, 16, device="cpu", traced=True, implementation="fused"),
    "dynamic cache": Generation(2, 16, new_tokens=9),
    "static cache": Generation(2, 16, cache="static"),
    "beams": Generation(2, 16, beams=3),
}
BOTH = [pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS), pytest.mark.parametrize("recipe", RECIPES)]


def everywhere(test: Any) -> Any:
    for mark in BOTH:
        test = mark(test)
    return test


def run(config: dict[str, Any], recipe: str, unroll: bool = False) -> Trace:
    chosen = RECIPES[recipe]
    if isinstance(chosen, Training):
        return trained.run(config, chosen, unroll=unroll).trace
    return generation.run(config, chosen, unroll=unroll).trace


def written(trace: Trace) -> tuple[Any, ...]:
    return trace.events, trace.marks, trace.spans, [repr(a) for a in trace.allocations]


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@everywhere
def test_every_run_of_a_recipe_is_the_same(config: dict[str, Any], recipe: str) -> None:
    assert written(run(config, recipe)) == written(run(config, recipe))


@everywhere
@pytest.mark.usefixtures("no_collector")
def test_the_collector_of_cycles_changes_nothing(config: dict[str, Any], recipe: str) -> None:
    without = written(run(config, recipe, unroll=True))
    gc.enable()
    gc.set_threshold(1)
    try:
        assert written(run(config, recipe, unroll=True)) == without
    finally:
        gc.set_threshold(700, 10, 10)


@everywhere
@pytest.mark.usefixtures("no_collector")
def test_nothing_is_alive_once_a_run_is_dropped(
    config: dict[str, Any], recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledgers: list[Ledger] = []
    create = Ledger.__init__
    monkeypatch.setattr(Ledger, "__init__", lambda self: (ledgers.append(self), create(self))[1])
    run(config, recipe, unroll=True)
    for ledger in ledgers:
        births, deaths = [e for e in ledger.events if e > 0], [-e for e in ledger.events if e < 0]
        alive = set(births) - set(deaths)
        assert not [ledger.allocations[number - 1] for number in alive]
        assert len(births) == len(deaths)


@everywhere
def test_the_peaks_are_those_of_an_independent_counter(config: dict[str, Any], recipe: str) -> None:
    trace = run(config, recipe)
    live: set[int] = set()
    highest, whole = 0, expand(trace)
    for event in whole.events:
        if event > 0:
            live.add(event)
        else:
            live.remove(-event)
        highest = max(highest, sum(whole.allocations[number - 1].num_bytes for number in live))
    assert highest == max(p.peak for p in phase_peaks(trace))


def surroundings() -> dict[str, Any]:
    return {name: getattr(state, name) for name in State.__slots__}


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("recipe", ["autocast", "checkpointed", "reentrant", "dynamic cache"])
@pytest.mark.usefixtures("no_collector")
def test_a_run_that_fails_leaves_no_trace_of_itself(
    recipe: str, fraction: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, whole = surroundings(), run(CONFIGS["llama"], recipe)
    expected, failing = written(whole), int(fraction * len(whole.allocations))
    ledgers: list[Ledger] = []
    allocate = Ledger.allocate

    def fail(self: Ledger, *args: Any) -> int:
        ledgers.append(self)
        if len(ledgers) == failing:
            raise WeighError("out of ghosts")
        return allocate(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "allocate", fail)
        with pytest.raises(WeighError, match="ghosts"):
            run(CONFIGS["llama"], recipe)
    assert surroundings() == before
    assert written(run(CONFIGS["llama"], recipe)) == expected
    events = ledgers[0].events
    assert sum(1 if event > 0 else -1 for event in events) == 0, "the frames of the failed run are gone"


def test_a_step_that_is_cut_short_can_be_taken_again() -> None:
    with recording(kernels("cuda")) as ledger:
        model = models.build(CONFIGS["gpt2"], FLOAT32)
        held = len(ledger.events)
        ids = ops.input_tensor((2, 16), INT64)
        out = model(ids, ids)
        del out
        ledger.mark(FORWARD, 1)
        assert sum(1 if event > 0 else -1 for event in ledger.events[held:]) == 1, "only the input is left"
