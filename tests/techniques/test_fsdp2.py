"""FSDP2 beyond the recorded runs: the ranks together hold the model, and blocks that stand for others stand rightly."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weigh
from weigh.errors import UsageError
from weigh.recipes.trained import TrainingRun, run
from weigh.recipes.training import Training
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


def fsdp2(unroll: bool = False, **settings: Any) -> TrainingRun:
    return run(LLAMA, Training(batch=2, sequence=16, shard="fsdp2", **settings), unroll=unroll)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 9))
def test_the_ranks_together_hold_every_parameter_once(world: int) -> None:
    whole = weigh.params(LLAMA).tensors()
    shards = [fsdp2(gpus_per_node=world, rank=rank, steps=1).parameters for rank in range(world)]
    assert sum(p.count * int(p.numel) for found in shards for p in found) == weigh.params(LLAMA).total
    for name, shape in whole.items():
        rows = [p.tensor.shape[0] for found in shards for p in found if name in p.names]
        assert sum(rows) == shape[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("checkpointing", [None, "full"])
@pytest.mark.parametrize("reshard", [None, True, False])
def test_compressed_and_unrolled_runs_have_the_same_peaks(checkpointing: str | None, reshard: bool | None) -> None:
    ours: dict[str, Any] = {"gpus_per_node": 4, "checkpointing": checkpointing, "reshard_after_forward": reshard}
    short, long = fsdp2(**ours), fsdp2(True, **ours)
    assert len(short.trace.events) < len(long.trace.events)
    assert [p.peak for p in phase_peaks(short.trace)] == [p.peak for p in phase_peaks(long.trace)]


@pytest.mark.parametrize(
    "more", [{"lora": Lora(rank=2)}, {"lora": Lora(rank=2), "checkpointing": "full"}, {"freeze": "embeddings"}]
)
def test_blocks_stand_for_others_where_the_first_ends_with_the_backward_pass(more: dict[str, Any]) -> None:
    """Its inputs want no gradient, so that it is not told when it has run back."""
    compressed, unrolled = (fsdp2(unroll, gpus_per_node=4, clip=True, **more) for unroll in (False, True))
    assert len(compressed.trace.spans) > 1
    written_out = expand(compressed.trace)
    assert [e for e in written_out.events if e > 0] == [e for e in unrolled.trace.events if e > 0]
    found = [[(p.before, p.peak, p.after) for p in phase_peaks(run.trace)] for run in (compressed, unrolled)]
    assert found[0] == found[1]


def test_hybrid_sharding_costs_a_reduced_copy_where_gradients_are_reduced_in_another_dtype() -> None:
    plain = fsdp2(nodes=2, gpus_per_node=4, dtype=weigh.dtypes.BFLOAT16, reduce_dtype=weigh.dtypes.FLOAT32)
    hybrid = fsdp2(nodes=2, gpus_per_node=4, replicas=2, dtype=weigh.dtypes.BFLOAT16, reduce_dtype=weigh.dtypes.FLOAT32)
    assert hybrid.recipe.mesh.shard == 4
    weights = [next(p for p in phase_peaks(r.trace)).after for r in (plain, hybrid)]
    assert weights[1] > 1.9 * weights[0]  # type: ignore[operator]


def test_a_rank_outside_of_the_world_is_refused() -> None:
    with pytest.raises(UsageError, match="no rank 4"):
        weigh.train(LLAMA, shard="fsdp2", gpus_per_node=4, rank=4)


@pytest.mark.parametrize("more", [{}, {"lora": 4}])
def test_mixed_precision_of_the_trainer_is_the_policy_over_fp32_shards(more: dict[str, Any]) -> None:
    words = {"shard": "fsdp2", "gpus_per_node": 2, "dtype": "bf16", "autocast": "bf16", "sequence": 16}
    found = weigh.train({**LLAMA, "dtype": "bfloat16"}, runtime="transformers", **words, **more).recipe
    assert (found.autocast, found.param_dtype, found.reduce_dtype) == (
        None,
        weigh.dtypes.BFLOAT16,
        weigh.dtypes.BFLOAT16,
    )
    assert found.dtype is (weigh.dtypes.BFLOAT16 if more else weigh.dtypes.FLOAT32)
