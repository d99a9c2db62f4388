"""torchtune: published peaks of one 3B model, what its switches save, and what is not modelled."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from weigh.dtypes import BFLOAT16, INT64
from weigh.errors import NotModelledError
from weigh.ghost import nn, ops
from weigh.ghost.state import recording
from weigh.kernels import kernels
from weigh.recipes.trained import TrainingRun, run
from weigh.recipes.training import Training
from weigh.runtimes import get
from weigh.runtimes.torchtune import TransformerDecoder
from weigh.techniques.lora import Lora
from weigh.trace.events import BACKWARD, FORWARD
from weigh.trace.peak import phase_peaks

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LLAMA_3B: dict[str, Any] = LLAMA | {
    "vocab_size": 128256,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
PUBLISHED = Training(batch=2, sequence=4096, dtype=BFLOAT16, implementation="fused", loss="chunked", compile=True)
"""torchtune's README.md at bd2a0fc, "Optimization flags": each row adds a switch to the one before; peak memory active
in GiB."""
CHECKPOINTED = replace(PUBLISHED, checkpointing="full")
IN_BACKWARD = replace(CHECKPOINTED, optimizer_in_backward=True)


def trained(config: dict[str, Any], recipe: Training, unroll: bool = False) -> TrainingRun:
    return run(config, recipe, unroll=unroll, loop=get("torchtune").loop)


def peaks(found: TrainingRun) -> list[int]:
    return [int(p.peak) for p in phase_peaks(found.trace)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("published", "recipe", "within"),
    [
        (60.0, replace(PUBLISHED, loss="upcast", compile=False), 0.01),
        (24.9, CHECKPOINTED, 0.015),
        (23.1, IN_BACKWARD, 0.005),
        (21.8, replace(IN_BACKWARD, offload_activations=True), 0.005),
    ],
)
def test_the_published_peaks_of_a_3b(published: float, recipe: Training, within: float) -> None:
    assert max(peaks(trained(LLAMA_3B, recipe))) / 2**30 == pytest.approx(published, rel=within)


SMALL = replace(CHECKPOINTED, sequence=64)


@pytest.mark.parametrize(
    "recipe",
    [
        SMALL,
        replace(SMALL, checkpointing=None, compile=False),
        replace(SMALL, compile=False, loss="upcast"),
        replace(SMALL, lora=Lora(rank=4, targets=("q_proj", "o_proj", "gate_proj"), dropout=0.1)),
        replace(SMALL, shard="fsdp2", gpus_per_node=4),
    ],
)
def test_compressed_and_unrolled_runs_have_the_same_peaks(recipe: Training) -> None:
    assert peaks(trained(LLAMA, recipe)) == peaks(trained(LLAMA, recipe, unroll=True))


def test_offloading_leaves_five_saved_tensors_on_the_device() -> None:
    """What the last norm saves is among the newest; the inputs of all eight layers are not."""
    kept, gone = (
        int(phase_peaks(trained(LLAMA, replace(SMALL, offload_activations=on)).trace)[1].after)  # type: ignore[arg-type]
        for on in (False, True)
    )
    hidden = 2 * 64 * 64 * 2
    assert kept - gone == 8 * hidden


def test_the_loss_with_the_output_layer_beside_the_real_one() -> None:
    """The CPU allocator's peaks of `LinearCrossEntropyLoss` at bd2a0fc in PyTorch 2.13, but for some scalars."""
    with recording(kernels("cpu", None, False, False)) as ledger:
        hidden = nn.parameter((3, 101, 64), BFLOAT16)
        decoder = SimpleNamespace(output=nn.Head(None, 64, 1500, BFLOAT16))
        labels = ops.input_tensor((3, 101), INT64)
        ledger.mark(FORWARD, 0)
        outputs = hidden * 2
        loss = TransformerDecoder.linear_chunked(decoder, outputs, labels)  # type: ignore[arg-type]
        del outputs
        ledger.mark(BACKWARD, 0)
        loss.backward()
        found = [int(p.peak) for p in phase_peaks(ledger.trace())]  # type: ignore[arg-type]
    assert found[1:] == pytest.approx([2_466_676, 2_538_888], abs=16)


def test_what_is_not_modelled_is_refused() -> None:
    with pytest.raises(NotModelledError, match="QLoRA"):
        trained(LLAMA, replace(SMALL, quantization="nf4"))
    with pytest.raises(NotModelledError, match="torchtune's qwen3"):
        trained(LLAMA | {"model_type": "qwen3"}, SMALL)
    with pytest.raises(NotModelledError, match="linear loss, compiled"):
        trained(LLAMA, replace(SMALL, loss="linear_chunked"))
