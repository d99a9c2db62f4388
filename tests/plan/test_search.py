"""What makes a training fit is run, not estimated, and nothing cheaper is left out."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from weigh import api, plan
from weigh.dtypes import BFLOAT16
from weigh.errors import WeighError
from weigh.hardware import Device, get_device
from weigh.optimizers import OPTIMIZERS
from weigh.plan import Change, Outcome, search
from weigh.plan.changes import PASSES, UPDATE, changes, settings_of
from weigh.recipes.training import Training
from weigh.report.training import ALIKE, outcome

MODEL = {"model_type": "gpt2", "n_layer": 4, "n_embd": 256, "n_head": 4, "vocab_size": 1000, "n_positions": 512}
GIB = 1 << 30


def device(free: int) -> Device:
    """One with so many bytes for a run, and what is beside it."""
    return replace(get_device("rtx-4090"), memory_bytes=free + 2 * GIB, reserved_bytes=0)


def report(free: int, **settings: Any) -> Any:
    return api.train(MODEL, device=device(free), batch=32, sequence=512, **settings)


def test_a_training_that_fits_needs_no_plan() -> None:
    assert report(100 * GIB).plan is None
    assert api.train(MODEL).plan is None


@pytest.mark.parametrize(
    ("free", "settings"), [(GIB, {}), (GIB // 2, {"attention": "eager"}), (GIB, {"shard": "fsdp2"})]
)
def test_every_remedy_is_what_its_settings_take(free: int, settings: dict[str, Any]) -> None:
    found = report(free, **settings)
    assert found.fit.verdict != "yes"
    assert found.plan.remedies
    for remedy in found.plan.remedies:
        words = {**settings, **remedy.settings}
        words = {n: v for n, v in ({"batch": 32, "sequence": 512} | words).items() if v is not None}
        again = api.train(MODEL, device=device(free), **words)
        assert again.peak == remedy.outcome.peak
        assert again.fit.verdict == "yes"
        assert remedy.saving == found.peak - again.peak


def test_remedies_come_in_order_and_none_holds_another() -> None:
    remedies = report(GIB).plan.remedies
    costs = [sum(change.cost for change in remedy.changes) for remedy in remedies]
    assert len(remedies) == 3
    assert costs == sorted(costs)
    for one, other in pairwise(remedies):
        assert not set(one.changes) <= set(other.changes)


def test_where_nothing_is_enough_the_nearest_is_named() -> None:
    small = replace(get_device("rtx-4090"), memory_bytes=1 << 26, reserved_bytes=0)
    plan = api.train(MODEL, device=small, batch=32).plan
    assert plan.remedies == ()
    assert plan.nearest.saving > 0


def test_what_was_run_and_fits_is_no_nearest() -> None:
    """Not even where it was run to rule others out, with more changes than sets that are tried have."""
    needed = {"batch", "nodes", "sequence", "checkpointing"}

    def run(changed: Mapping[str, Any]) -> Outcome:
        size = 1 if needed <= changed.keys() else 100
        return Outcome(size, size, size, 1.0)

    found = search(Training(batch=16, dtype=BFLOAT16), Outcome(100, 100, 100, 1.0), run, lambda size: size < 10)
    assert found.nearest is None
    (remedy,) = found.remedies
    assert needed <= remedy.settings.keys()
    assert len(remedy.changes) == len(needed)


def test_micro_batches_after_the_second_do_the_same() -> None:
    peaks = {api.train(MODEL, batch=2, sequence=128, accumulation=n).peak for n in (ALIKE - 1, ALIKE, 9)}
    assert len(peaks) == 1


def test_a_change_of_the_passes_leaves_the_update_and_the_other_way_round() -> None:
    """The rule by which sets of changes are not run."""
    found = report(GIB)

    def run(changed: Mapping[str, Any]) -> Outcome:
        return outcome(found.again(changed))

    first = run({})
    for change in changes(found.recipe):
        if change.kind == "loss":
            continue  # not in this family
        changed = run(settings_of(found.recipe, (change,))[0])
        if change.of == PASSES:
            assert changed.update == first.update, change.what
        if change.of == UPDATE:
            assert changed.passes >= first.passes, change.what


def test_a_step_keeps_its_sequences_where_it_can() -> None:
    recipe = Training(batch=4, accumulation=4)
    by_what = {change.what: change for change in changes(recipe)}
    eight = by_what["sharding (fsdp2) over 8 devices"]
    assert settings_of(recipe, (eight,))[0]["accumulation"] == 1
    assert settings_of(recipe, (eight,))[1] == 2
    settings, grown = settings_of(recipe, (by_what["micro-batches of 1"], eight))
    assert (settings["accumulation"], grown) == (2, 1)


LLAMA = {"model_type": "llama", "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4} | {
    "num_attention_heads": 4,
    "vocab_size": 4000,
}


@pytest.mark.parametrize("free", [75, 90, 110, 130, 180, 260])
def test_what_is_found_is_what_looking_at_everything_finds(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets that are not run could not have been among the ways, whatever the limit."""
    monkeypatch.setattr(plan, "MOST_EVENTS", 1 << 40)
    recipe = Training(batch=4, sequence=256, dtype=BFLOAT16)
    again = api.train(LLAMA, batch=4, sequence=256, dtype="bf16").again
    ran: dict[str, Outcome] = {}

    def run(changed: Mapping[str, Any]) -> Outcome:
        key = str(sorted(changed.items(), key=str))
        if key not in ran:
            ran[key] = outcome(again({**changed, "accumulation": min(changed.get("accumulation", 1), ALIKE)}))
        return ran[key]

    def fits(peak: int) -> bool:
        return peak <= free << 20

    found = plan.search(recipe, run({}), run, fits)
    wanted: list[tuple[Change, ...]] = []
    for chosen in plan.by_price(changes(recipe)):
        if len(wanted) < plan.WANTED and not any(plan.is_enough(less, chosen) for less in wanted):
            try:
                peak = run(settings_of(recipe, chosen)[0]).peak
            except WeighError:
                continue
            if fits(peak):
                wanted.append(chosen)
    assert [remedy.changes for remedy in found.remedies] == wanted
    assert not found.cut_short


@pytest.mark.parametrize(
    "optimizer", [name for name in OPTIMIZERS if name not in ("muon", "soap", "schedule_free_radam")]
)
def test_one_steady_step_takes_no_more_than_the_run(optimizer: str) -> None:
    whole = api.train(MODEL, sequence=32, optimizer=optimizer).peak
    assert api.train(MODEL, sequence=32, optimizer=optimizer, **plan.STEADY).peak <= whole


def test_the_search_runs_no_set_whose_weights_alone_are_too_much() -> None:
    ran = []

    def run(changed: Mapping[str, Any]) -> Outcome:
        ran.append(changed)
        return Outcome(100, 100, 100, 1.0)

    search(Training(batch=8), Outcome(200, 150, 200, 1.0), run, lambda peak: peak < 120)
    assert all({"nodes", "lora", "dtype", "optimizer", "implementation"} & words.keys() for words in ran)
