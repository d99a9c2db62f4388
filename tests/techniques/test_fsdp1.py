"""FSDP1 beyond the recorded runs."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weigh
from weigh import models
from weigh.dtypes import BFLOAT16
from weigh.errors import UsageError
from weigh.ghost.state import recording
from weigh.recipes.settings import make
from weigh.recipes.trained import TrainingRun, run
from weigh.recipes.training import Training
from weigh.techniques.fsdp1 import FlatShard
from weigh.techniques.lora import Lora
from weigh.trace.expand import expand
from weigh.trace.peak import phase_peaks

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 130,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def fsdp1(unroll: bool = False, **settings: Any) -> TrainingRun:
    return run(LLAMA, Training(batch=2, sequence=16, shard="fsdp1", **settings), unroll=unroll)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 9))
def test_the_ranks_together_hold_every_parameter_once(world: int) -> None:
    shards = [fsdp1(gpus_per_node=world, rank=rank, steps=1).parameters for rank in range(world)]
    for name, shape in weigh.params(LLAMA).tensors().items():
        elements = 1
        for size in shape:
            elements *= size
        assert sum(int(p.numel) for found in shards for p in found if name in p.names) == elements


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 9))
def test_flat_parameters_are_padded_to_the_ranks(world: int) -> None:
    total = weigh.params(LLAMA).total
    each = sum(p.count * int(p.numel) for p in fsdp1(gpus_per_node=world, use_orig_params=False, steps=1).parameters)
    assert total <= each * world < total + 7 * world  # six blocks and the rest


@pytest.mark.parametrize("checkpointing", [None, "full", "reentrant"])
@pytest.mark.parametrize("use_orig_params", [True, False])
def test_compressed_and_unrolled_runs_have_the_same_peaks(checkpointing: str | None, use_orig_params: bool) -> None:
    ours: dict[str, Any] = {"gpus_per_node": 4, "checkpointing": checkpointing, "use_orig_params": use_orig_params}
    short, long = fsdp1(**ours), fsdp1(True, **ours)
    assert len(short.trace.events) < len(long.trace.events)
    assert [p.peak for p in phase_peaks(short.trace)] == [p.peak for p in phase_peaks(long.trace)]


def adapted(settings: FlatShard, **lora: Any) -> None:
    """Blocks that hold adapters, which peft's policy would wrap by themselves."""
    with recording():
        model = models.build(LLAMA, BFLOAT16)
        Lora(rank=4, targets=("q_proj",), **lora).apply(model)
        settings.apply(model)


def test_frozen_and_trained_parameters_in_one_unit_are_refused_as_upstream_does() -> None:
    with pytest.raises(UsageError, match="a unit has both"):
        adapted(FlatShard(2, use_orig_params=False), autocast_adapter=False)


def test_parameters_of_several_dtypes_in_one_unit_are_refused() -> None:
    with pytest.raises(UsageError, match="one dtype"):
        adapted(FlatShard(2))


def test_what_is_offloaded_is_on_the_host() -> None:
    """Shards, a gradient of each whether it is trained or not, and Adam's two states; none of them on the device."""
    words: dict[str, Any] = {"gpus_per_node": 2, "use_orig_params": False, "optimizer": "adam"}
    stays, goes = fsdp1(**words), fsdp1(offload_parameters=True, **words)
    shards = sum(p.count * int(p.tensor.num_bytes) for p in stays.parameters)
    (host,) = goes.elsewhere.values()
    after = [int(phase_peaks(r.trace)[-1].after) for r in (stays, goes)]  # type: ignore[arg-type]
    step_counts = after[0] - after[1] - 3 * shards
    assert host >= 4 * shards + step_counts
    assert host < 4 * shards * 1.3  # what one update of Adam makes beside them
    assert 0 <= step_counts < 0.01 * shards
    assert phase_peaks(goes.trace)[2].peak > phase_peaks(goes.trace)[2].after  # gathered again, and dropped


ROWS = [json.loads(line) for line in (Path(__file__).parents[1] / "data" / "fsdp1.jsonl").read_text().splitlines()]
"""What `tests/torch/support/real_fsdp1.py` printed."""
LARGE = 30_000


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["case"])
def test_as_pytorch_itself(row: dict[str, Any]) -> None:
    """Every phase; and in the second step the level after every birth of a flat parameter, a gradient, a projection."""
    plain = {"batch": 2, "sequence": 48, "traced": True, "kernels": "cpu", "labels_are_inputs": True, "shard": "fsdp1"}
    words = {**plain, "optimizer": "sgd", "implementation": "forloop", **row["settings"]}
    trace = expand(run(row["config"], make(Training, words)).trace)
    found = phase_peaks(trace)
    assert [[p.mark.phase, p.before, p.peak] for p in found[1:]] == row["peaks"][1:]  # it was whole there as it loaded
    live, levels = found[4].before, []
    for event in trace.events[trace.marks[4].event :]:
        size = trace.allocations[abs(event) - 1].num_bytes
        live = live + size if event > 0 else live - size
        if event > 0 and size >= LARGE:
            levels.append(live)
    assert levels == row["levels"]


def test_compressed_runs_that_gather_ahead_have_the_same_peaks() -> None:
    for words in ({"forward_prefetch": True}, {"backward_prefetch": "post"}, {"replicas": 2}):
        short, long = fsdp1(gpus_per_node=4, **words), fsdp1(True, gpus_per_node=4, **words)
        assert [p.peak for p in phase_peaks(short.trace)] == [p.peak for p in phase_peaks(long.trace)]
