"""Pipelines of a plain script beside torch's own schedules, recorded."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weigh
from weigh.dtypes import BFLOAT16
from weigh.errors import NotModelledError, UsageError
from weigh.recipes.pipelining import GPIPE, INTERLEAVED, ONE_F_ONE_B, SCHEDULES, SPLIT, in_flight, order
from weigh.recipes.trained import run
from weigh.recipes.training import Training
from weigh.trace.peak import phase_peaks

ROWS = [json.loads(line) for line in (Path(__file__).parent.parent / "data/pipelines.jsonl").read_text().splitlines()]
LLAMA = ROWS[0]["config"]


def trained(row: dict[str, Any], **how: Any) -> Any:
    sizes = {"batch": row["batch"], "sequence": row["sequence"], "accumulation": row["micro_batches"]}
    ranks = {"pipeline": row["ranks"], "gpus_per_node": row["ranks"], "rank": row["rank"]}
    recipe = Training(dtype=BFLOAT16, optimizer=None, pipeline_schedule=row["schedule"], **sizes, **ranks, **how)
    return run(row["config"], recipe)


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r['schedule']}-{r['rank']}of{r['ranks']}")
def test_a_stage_holds_what_it_holds_under_the_real_schedule(row: dict[str, Any]) -> None:
    second = [p for p in phase_peaks(trained(row, traced=True).trace) if p.mark.round == 1]
    passes = [p for p in second if p.mark.phase in ("forward", "backward")]
    before = passes[0].before
    assert max(p.peak for p in passes) - before == row["peak"]
    assert passes[-1].after - before == row["after"]


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(SCHEDULES), st.integers(2, 6), st.integers(1, 3), st.integers(2, 3), st.data())
def test_every_micro_batch_goes_forward_and_then_back_through_every_stage(
    schedule: str, ranks: int, rounds: int, several: int, data: st.DataObject
) -> None:
    stages = several if schedule not in (GPIPE, ONE_F_ONE_B) else 1
    rank, micro_batches = data.draw(st.integers(0, ranks - 1)), ranks * rounds
    done: Counter[tuple[int, int]] = Counter()
    for forward, stage, number in order(schedule, ranks, rank, micro_batches, stages):
        assert done[stage, number] == (0 if forward else 1)
        done[stage, number] += 1
    assert done == {(stage, number): 2 for stage in range(stages) for number in range(micro_batches)}
    most = in_flight(schedule, ranks, rank, micro_batches, stages)
    assert most <= micro_batches * stages
    if schedule == ONE_F_ONE_B:
        assert most == ranks - rank


def test_the_ranks_together_hold_the_model_once() -> None:
    whole = weigh.params(LLAMA).total
    how = {"batch": 1, "sequence": 8, "pipeline": 4, "gpus_per_node": 4, "accumulation": 4, "steps": 1}
    parts = (run(LLAMA, Training(rank=rank, **how)) for rank in range(4))
    assert sum(part.counted.total for part in parts) == whole


def test_several_stages_hold_more_passes_and_equal_layers() -> None:
    how = {"batch": 1, "sequence": 32, "accumulation": 8, "pipeline": 4, "gpus_per_node": 4, "dtype": "bf16"}
    one, two = (weigh.train(LLAMA, **how, **more) for more in ({}, {"virtual_pipeline": 2}))
    assert one.run.counted.total == two.run.counted.total
    assert in_flight(INTERLEAVED, 4, 0, 8, 2) > 2 * in_flight(ONE_F_ONE_B, 4, 0, 8)
    assert two.peak > one.peak


@pytest.mark.parametrize("schedule", SPLIT)
def test_schedules_that_part_the_backward_pass_are_refused(schedule: str) -> None:
    with pytest.raises(NotModelledError, match=schedule):
        list(order(schedule, 4, 0, 8, 2))


def test_what_does_not_go_together_is_refused() -> None:
    stages = {"pipeline": 4, "gpus_per_node": 4, "sequence": 16, "accumulation": 4}
    with pytest.raises(UsageError, match="8 layers do not divide into 3 stages"):
        weigh.train(LLAMA, pipeline=3, gpus_per_node=3, sequence=16, accumulation=3)
    with pytest.raises(UsageError, match="2 micro-batches do not fill 4 stages"):
        weigh.train(LLAMA, **{**stages, "accumulation": 2})
    with pytest.raises(UsageError, match="one stage on a rank, not 2"):
        weigh.train(LLAMA, **stages, virtual_pipeline=2, pipeline_schedule="1f1b")
    with pytest.raises(NotModelledError, match="shard beside a pipeline"):
        weigh.train(LLAMA, **{**stages, "gpus_per_node": 8}, shard="fsdp2")
    with pytest.raises(NotModelledError, match="a pipeline of gpt2"):
        weigh.train("gpt2", **stages)
    with pytest.raises(NotModelledError, match="a program that brings its own modules"):
        weigh.train(LLAMA, **stages, runtime="torchtune")
