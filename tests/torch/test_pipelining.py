"""torch's own pipeline schedules: their order of passes, and a stage under them, asked again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed.pipelining import schedules

from weigh.recipes.pipelining import order

ROOT = Path(__file__).parent.parent
RECORDED = (ROOT / "data/pipelines.jsonl").read_text()

pytestmark = pytest.mark.torch


def real(schedule: str, ranks: int, rank: int, micro_batches: int, stages: int) -> list[tuple[bool, int, int]]:
    """The passes of one rank, in order, as torch's class lays them out."""
    made: Any = SimpleNamespace(_num_stages=ranks, _n_microbatches=micro_batches, pp_group_size=ranks)
    made.n_local_stages, made._stages = stages, [None] * stages
    made.number_of_rounds = max(1, micro_batches // ranks)
    made.microbatches_per_round = micro_batches // made.number_of_rounds
    if schedule == "gpipe":
        actions = schedules.ScheduleGPipe._get_pipeline_order(made)[rank]
    elif schedule == "1f1b":
        actions = schedules.Schedule1F1B._get_pipeline_order(made)[rank]
    elif schedule == "looped_bfs":
        actions = schedules.ScheduleLoopedBFS._calculate_single_rank_operations(made, rank)
    else:
        actions = schedules.ScheduleInterleaved1F1B._calculate_single_rank_operations(made, rank)
    passes = [a for a in actions if a is not None and a.microbatch_index is not None]
    kinds = schedules._ComputationType
    return [(a.computation_type == kinds.FORWARD, a.stage_index // ranks, a.microbatch_index) for a in passes]


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
@pytest.mark.parametrize(
    ("schedule", "stages"),
    [("gpipe", 1), ("1f1b", 1), ("interleaved_1f1b", 2), ("interleaved_1f1b", 3), ("looped_bfs", 2)],
)
def test_the_order_is_that_of_torch(schedule: str, stages: int, ranks: int) -> None:
    # torch's table for 1F1B's last rank counts micro-batches from one; its loop, and the recorded rows, from nought
    for rank in range(ranks - (schedule == "1f1b")):
        for micro_batches in (ranks, 2 * ranks, 3 * ranks):
            mine = list(order(schedule, ranks, rank, micro_batches, stages))
            assert mine == real(schedule, ranks, rank, micro_batches, stages)


@pytest.mark.slow
def test_a_stage_holds_what_was_recorded() -> None:
    rows = [json.loads(line) for line in RECORDED.splitlines()]
    asked = "".join(json.dumps({k: v for k, v in r.items() if k not in ("peak", "after")}) + "\n" for r in rows)
    paths = os.pathsep.join([str(ROOT / "torch"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "support.pipeline_stage"]
    ran = subprocess.run(
        command,
        input=asked,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.stdout == RECORDED, ran.stderr[-2000:]
