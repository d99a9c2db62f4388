"""Four-bit layers, and adapters beside them."""

from typing import Any

import pytest

import weigh
from weigh.dtypes import BFLOAT16, FLOAT32, UINT8
from weigh.errors import NotModelledError, UnknownNameError, WeighError
from weigh.formats.base import LINEAR, Weight
from weigh.formats.bitsandbytes import Bitsandbytes
from weigh.ghost import nn
from weigh.ghost.state import recording
from weigh.recipes.trained import TrainingRun, run
from weigh.recipes.training import Training
from weigh.techniques.lora import Lora
from weigh.techniques.quantization import Linear4bit, Quantization
from weigh.trace.peak import phase_peaks

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 130,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ADAPTERS = Lora(rank=4, targets=("q_proj", "k_proj", "v_proj", "o_proj"), dropout=0.1, input_gradients=True)


def qlora(unroll: bool = False, **settings: Any) -> TrainingRun:
    found: dict[str, Any] = {"dtype": BFLOAT16, "autocast": BFLOAT16, "quantization": "nf4", "lora": ADAPTERS}
    return run(LLAMA, Training(batch=2, sequence=16, **(found | settings)), unroll=unroll)


def peaks(made: TrainingRun) -> list[int]:
    return [int(p.peak) for p in phase_peaks(made.trace)]  # type: ignore[arg-type]


@pytest.mark.parametrize("nested", [False, True])
def test_a_layer_holds_what_a_checkpoint_of_it_stores(nested: bool) -> None:
    with recording():
        layer = Linear4bit(nn.Linear(640, 96, BFLOAT16), Quantization(nested=nested))
        held = sorted(int(t.storage.num_bytes) for _, t in layer.own_tensors())  # type: ignore[arg-type]
    weight = Weight("layer.weight", 96, 640, BFLOAT16, LINEAR)
    written = Bitsandbytes(4, "nf4", nested, UINT8, None, False).store(weight)
    stored = [
        s.elements * s.dtype.itemsize
        for s in written
        if "quant_state" not in s.name and "nested_quant_map" not in s.name
    ]
    assert held == sorted([*stored, 4] if nested else stored)  # the mean, of which a checkpoint writes the digits


@pytest.mark.parametrize("fused", [None, "unsloth"])
@pytest.mark.parametrize("checkpointing", [None, "reentrant"])
@pytest.mark.parametrize("shard", [None, "fsdp1"])
def test_compressed_and_unrolled_runs_have_the_same_peaks(
    fused: str | None, checkpointing: str | None, shard: str | None
) -> None:
    ours = {"fused_kernels": fused, "checkpointing": checkpointing, "shard": shard, "gpus_per_node": 2 if shard else 1}
    short, long = qlora(**ours), qlora(True, **ours)
    if fused is None or checkpointing is not None:  # where a block's input is its gradient, all blocks are run
        assert len(short.trace.events) < len(long.trace.events)
    assert peaks(short) == peaks(long)


def test_only_adapters_are_trained_and_the_whole_weight_comes_and_goes() -> None:
    made = qlora()
    assert all(p.tensor.requires_grad == (".lora_" in p.names[0]) for p in made.parameters)
    whole = [a.phase for a in made.trace.allocations if a.op == "dequantize_4bit"]
    assert {"forward", "backward"} == set(whole)


def test_what_is_not_quantized_is_upcast_where_that_is_asked_for() -> None:
    def dtypes(upcast: str | None) -> dict[str, Any]:
        found = qlora(upcast=upcast).parameters
        return {name: p.tensor.dtype for p in found for name in p.names if "layers.3" not in name}

    assert dtypes(None)["model.norm.weight"] is BFLOAT16
    norms, everything = dtypes("norms"), dtypes("all")
    assert norms["model.norm.weight"] is everything["model.embed_tokens.weight"] is FLOAT32
    assert norms["model.embed_tokens.weight"] is BFLOAT16


def test_adapters_are_left_alone_by_fsdp_where_they_are_fused() -> None:
    def adapters(**settings: Any) -> int:
        found = qlora(shard="fsdp1", gpus_per_node=2, **settings).parameters
        return sum(p.count * int(p.numel) for p in found if ".lora_" in p.names[0])

    assert adapters(fused_kernels="unsloth") == 2 * adapters()


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(UnknownNameError):
        Quantization("nf3").apply(nn.Module())
    with pytest.raises(WeighError, match="no linear layers"):
        weigh.train("gpt2", quantization="nf4", lora="4:c_attn")
    everything = Lora(rank=4, targets=("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"))
    with pytest.raises(NotModelledError, match="MLPs"):
        qlora(fused_kernels="unsloth", lora=everything)
