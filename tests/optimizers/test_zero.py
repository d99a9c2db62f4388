"""ZeRO stages 1 and 2: published bytes as special cases, and the law of sharding."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weigh import api
from weigh.dtypes import BFLOAT16
from weigh.errors import NotModelledError
from weigh.recipes.trained import run
from weigh.recipes.training import Training
from weigh.trace.events import BACKWARD, COMMUNICATION, GRADIENT, OPTIMIZER_STATE, STEP, WEIGHT, Trace
from weigh.trace.peak import phase_peaks

CONFIG = {"model_type": "gpt2", "n_layer": 5, "n_embd": 64, "n_head": 2, "vocab_size": 900, "n_positions": 64}
quick = settings(max_examples=8, deadline=None, derandomize=True, database=None)


def trained(**words: Any) -> tuple[Trace, int]:
    """The trace, and how many parameters there are."""
    made = run(CONFIG, Training(**({"sequence": 16, "dtype": BFLOAT16, "optimizer": "adamw_apex"} | words)))
    return made.trace, sum(p.numel * p.count for p in made.parameters)


def held_before_the_last_step(trace: Trace) -> dict[str, int]:
    """Bytes by purpose."""
    stop = [mark.event for mark in trace.marks if mark.phase == STEP][-1]
    held: dict[str, int] = {}
    for event in trace.events[:stop]:
        made = trace.allocations[abs(event) - 1]
        assert isinstance(made.num_bytes, int)
        held[made.purpose] = held.get(made.purpose, 0) + (made.num_bytes if event > 0 else -made.num_bytes)
    return held


@pytest.mark.parametrize("shard", ["zero1", "zero2"])
@pytest.mark.parametrize(("optimizer", "per_parameter"), [("adamw_apex", 16.0), ("adamw_8bit", 10 + 1 / 32)])
def test_bytes_per_parameter_on_one_device(shard: str, optimizer: str, per_parameter: float) -> None:
    """2 + 2 + 4 + 8 (Rajbhandari et al. 2020), and 2 + 2 + 4 + 2.03 with states in 8 bits."""
    trace, numel = trained(shard=shard, optimizer=optimizer)
    held = held_before_the_last_step(trace)
    total = held[WEIGHT] + held[GRADIENT] + held[OPTIMIZER_STATE]
    assert 0 <= total - per_parameter * numel <= 4 * 1024  # two tables, a flag, the last block, the padding


@quick
@given(world=st.integers(1, 4), stage=st.sampled_from(["zero1", "zero2"]), overlap=st.booleans(), cut=st.integers(1, 9))
def test_all_ranks_together_hold_what_one_would(world: int, stage: str, overlap: bool, cut: int) -> None:
    words = {
        "zero_reduce_bucket_size": 30_000 * cut,
        "zero_overlap_comm": overlap,
        "gpus_per_node": world,
        "shard": stage,
    }
    ranks = [held_before_the_last_step(trained(**words, rank=rank)[0]) for rank in range(world)]
    numel = trained()[1]
    padded = -(-numel // (2 * world)) * 2 * world
    assert {held[WEIGHT] for held in ranks} == {2 * padded}  # a replica each
    assert sum(held[OPTIMIZER_STATE] for held in ranks) == 12 * padded + 4 * world  # and an overflow flag each
    gradients = sum(held[GRADIENT] for held in ranks)
    assert 2 * numel <= gradients  # those that lie across a boundary are held whole on either side
    assert all(held.get(COMMUNICATION, 0) == 0 for held in ranks)


def test_a_gradient_larger_than_the_bucket_is_reduced_where_it_is() -> None:
    small, numel = trained(shard="zero2", zero_reduce_bucket_size=10)
    large, _ = trained(shard="zero2", zero_reduce_bucket_size=10 * numel)
    peaks = [next(p for p in phase_peaks(t) if p.mark == m) for t in (small, large) for m in t.marks[-2:-1]]
    assert peaks[0].mark.phase == BACKWARD
    assert int(peaks[1].peak) - int(peaks[0].peak) > 2 * 9 * numel  # type: ignore[arg-type]


def test_stage_1_keeps_its_bucket_between_micro_batches() -> None:
    words: dict[str, Any] = {"accumulation": 2, "zero_reduce_bucket_size": 7_000, "gpus_per_node": 2}
    forward = {}
    for shard in ("zero1", "zero2"):
        trace, _ = trained(shard=shard, **words)
        forward[shard] = [p for p in phase_peaks(trace) if p.mark.phase == "forward"][-1].before
    assert forward["zero1"] != forward["zero2"]


def test_offloaded_states_are_elsewhere() -> None:
    report = api.train("gpt2", runtime="deepspeed", shard="zero2", dtype="bf16", sequence=64, offload_optimizer=True)
    assert OPTIMIZER_STATE not in report.memory.by_purpose()
    (held,) = report.run.elsewhere.values()
    assert held > 18 * 124_439_808
    assert "pinned on the host" in str(report)


def test_what_is_not_run_is_refused() -> None:
    with pytest.raises(NotModelledError, match="without ZeRO"):
        api.train("gpt2", runtime="deepspeed")
