"""torchtitan: blocks that stand for others, what selective checkpoints keep, and what is not modelled."""

from typing import Any

import pytest

from weigh.dtypes import BFLOAT16, FLOAT32
from weigh.errors import NotModelledError
from weigh.recipes.trained import TrainingRun, run
from weigh.recipes.training import Training
from weigh.runtimes import get
from weigh.trace.peak import phase_peaks

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 130,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def trained(unroll: bool = False, **settings: Any) -> TrainingRun:
    given: dict[str, Any] = {"batch": 2, "sequence": 64, "shard": "fsdp2", "gpus_per_node": 4, "clip": True}
    recipe = Training(**given | {"param_dtype": BFLOAT16, "reduce_dtype": FLOAT32} | settings)
    return run(LLAMA, recipe, unroll=unroll, loop=get("torchtitan").loop)


def peaks(found: TrainingRun) -> list[int]:
    return [int(p.peak) for p in phase_peaks(found.trace)]  # type: ignore[arg-type]


@pytest.mark.parametrize("checkpointing", [None, "full", "selective"])
def test_compressed_and_unrolled_runs_have_the_same_peaks(checkpointing: str | None) -> None:
    assert peaks(trained(checkpointing=checkpointing)) == peaks(trained(True, checkpointing=checkpointing))


def test_selective_checkpoints_keep_attention_and_every_other_product() -> None:
    kept = []
    for checkpointing in ("full", "selective"):
        forward = next(p for p in phase_peaks(trained(checkpointing=checkpointing).trace) if p.mark.phase == "forward")
        kept.append(int(forward.after))  # type: ignore[arg-type]
    tokens = 2 * 64
    each_layer = tokens * (64 + 32 + 96 + 64) * 2 + tokens * 64 * 2 + tokens * 4 * 4 + 24  # wq, wv, w1, w2; attention
    assert kept[1] - kept[0] == 8 * each_layer


def test_compiled_blocks_do_not_keep_what_their_last_product_returns() -> None:
    eager, compiled = (trained(checkpointing="selective", compile=on) for on in (False, True))
    after = [int(phase_peaks(found.trace)[1].after) for found in (eager, compiled)]  # type: ignore[arg-type]
    assert after[0] - after[1] == 8 * 2 * 64 * 64 * 2
    assert peaks(compiled) == peaks(trained(True, checkpointing="selective", compile=True))


def test_a_compiled_loss_makes_no_fp32_logits() -> None:
    """The logits' softmax is kept in fp32 otherwise; compiled, two numbers a row and the logits themselves."""
    upcast, compiled = (trained(loss=loss) for loss in ("upcast", "compiled"))
    after = [int(phase_peaks(found.trace)[1].after) for found in (upcast, compiled)]  # type: ignore[arg-type]
    rows = 2 * 64
    assert after[0] - after[1] == rows * 130 * 4 - rows * 130 * 2 - 2 * rows * 4 + 4  # the sum of `nll_loss`'s weights


def test_what_is_not_modelled_is_refused() -> None:
    with pytest.raises(NotModelledError, match="compiled layers of which some are checkpointed"):
        trained(compile=True, checkpointing="full", checkpoint_every=2)
    with pytest.raises(NotModelledError, match="tensor parallelism"):
        trained(tensor=2)
    with pytest.raises(NotModelledError, match="torchtitan's qwen3"):
        run(LLAMA | {"model_type": "qwen3"}, Training(), loop=get("torchtitan").loop)
