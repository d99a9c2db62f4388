"""Kernels that replace parts of transformers' models, in whole steps."""

from typing import Any

import pytest

import weigh
from weigh import runtimes
from weigh.dtypes import BFLOAT16
from weigh.errors import NotModelledError
from weigh.recipes.settings import make
from weigh.recipes.trained import TrainingRun, run
from weigh.recipes.training import Training
from weigh.trace.events import GRADIENT
from weigh.trace.peak import phase_peaks

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 1300,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def step(unroll: bool = False, **settings: Any) -> TrainingRun:
    return run(LLAMA, Training(batch=2, sequence=64, dtype=BFLOAT16, **settings), unroll=unroll)


def peaks(made: TrainingRun) -> list[int]:
    return [int(p.peak) for p in phase_peaks(made.trace)]  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{"fused_kernels": "unsloth", "loss": "shifted"}, {"loss": "liger_fused_linear"}])
@pytest.mark.parametrize("checkpointing", [None, "reentrant"])
@pytest.mark.parametrize("shard", [None, "fsdp1"])
def test_compressed_and_unrolled_runs_have_the_same_peaks(
    settings: dict[str, str], checkpointing: str | None, shard: str | None
) -> None:
    found = settings | {"checkpointing": checkpointing, "shard": shard, "gpus_per_node": 2 if shard else 1}
    assert peaks(step(**found)) == peaks(step(True, **found))


def test_a_loss_without_logits_has_none() -> None:
    logits = 2 * 64 * 1300

    def biggest(**settings: Any) -> int:
        shapes = [a.shape for a in step(**settings).trace.allocations if a.path != "lm_head" and 1300 in a.shape]
        return max(int(shape[0] * shape[-1]) for shape in shapes)  # type: ignore[call-overload]

    assert biggest(loss="liger_fused_linear") == 1300 * 64
    assert biggest() >= logits


def test_norms_of_unsloth_train_no_weights() -> None:
    trace = step(fused_kernels="unsloth", loss="shifted").trace
    paths = {a.path for a in trace.allocations if a.purpose == GRADIENT}
    assert any("mlp.gate_proj" in path for path in paths)
    assert not any("layernorm" in path for path in paths if path.endswith("weight"))
    states = [int(a.num_bytes) for a in trace.allocations if a.purpose == "optimizer state"]  # type: ignore[arg-type]
    assert 64 * 2 not in states


def test_families_without_them_are_refused() -> None:
    with pytest.raises(NotModelledError, match="kernels for gpt2"):
        weigh.train("gpt2", fused_kernels="unsloth")
    with pytest.raises(NotModelledError, match="fused linear loss"):
        weigh.train("gpt2", loss="liger_fused_linear")


def test_accelerate_holds_trained_shards_in_fp32_under_mixed_precision() -> None:
    words = {"dtype": "bf16", "autocast": "bf16", "shard": "fsdp1", "gpus_per_node": 2}
    runtime = runtimes.get("transformers")
    recipe = make(Training, runtime.settings(words, LLAMA, (4, 48)))
    made = run(LLAMA, recipe, loop=runtime.loop)
    assert {p.tensor.dtype.name for p in made.parameters} == {"fp32"}
    gathered = {a.dtype for a in made.trace.allocations if a.op == "c10d::all_gather"}
    assert gathered == {"bf16"}


def test_older_releases_copy_grouped_keys_and_values() -> None:
    runtime = runtimes.get("transformers")
    mistral = LLAMA | {"model_type": "mistral"}
    assert runtime.settings({}, mistral, (4, 45))["repeat_kv"]
    assert "repeat_kv" not in runtime.settings({}, mistral, (4, 48))
    assert "repeat_kv" not in runtime.settings({}, LLAMA, (4, 45))
    flash = {"attention": "flash_attention_2"}
    assert max(peaks(step(repeat_kv=True, **flash))) > max(peaks(step(**flash)))
