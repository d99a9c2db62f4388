"""What techniques must do whatever the model is: remove what they say they remove, and refuse what they cannot find."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weigh
from weigh.errors import WeighError
from weigh.recipes.settings import make
from weigh.recipes.trained import TrainingRun, run
from weigh.recipes.training import Training
from weigh.techniques.freezing import PARTS
from weigh.trace.events import ACTIVATION, FORWARD, GRADIENT, OPTIMIZER_STATE, STEP, WEIGHT
from weigh.trace.expand import expand

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "intermediate_size": 80},
    "gpt2": {},
    "qwen2_moe": {"num_key_value_heads": 2, "intermediate_size": 48, "num_experts": 4, "moe_intermediate_size": 24},
    "gpt_neox": {"intermediate_size": 96},
}
SIZES = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
GPT2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}


def config(family: str) -> dict[str, Any]:
    return {"model_type": family, **(GPT2 if family == "gpt2" else SIZES), **FAMILIES[family]}


def trained(family: str, **words: Any) -> TrainingRun:
    return run(config(family), make(Training, {"batch": 2, "sequence": 24, **words}))


def after(made: TrainingRun, phase: str, purpose: str) -> int:
    """Bytes of a purpose at the end of the last phase of that name, counted with every copy written out."""
    trace = expand(made.trace)
    marks = [*trace.marks[1:], None]
    ends = [end for mark, end in zip(trace.marks, marks, strict=True) if mark.phase == phase]
    stop = len(trace.events) if ends[-1] is None else ends[-1].event
    alive: set[int] = set()
    for event in trace.events[:stop]:
        (alive.add if event > 0 else alive.discard)(abs(event) - 1)
    return sum(int(a.num_bytes) for i, a in enumerate(trace.allocations) if i in alive and a.purpose == purpose)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=24)
@given(st.sampled_from(sorted(FAMILIES)), st.sampled_from(PARTS), st.sampled_from(["adamw", "sgd_momentum", "adagrad"]))
def test_freezing_removes_the_gradients_and_states_of_what_is_frozen_and_nothing_else(
    family: str, part: str, optimizer: str
) -> None:
    words: dict[str, Any] = {"optimizer": optimizer.partition("_")[0], "set_to_none": False}
    if optimizer == "sgd_momentum":
        words["momentum"] = 0.9
    every, frozen = trained(family, **words), trained(family, **words, freeze=part)
    still = sum(p.count * int(p.tensor.num_bytes) for p in frozen.parameters if p.tensor.requires_grad)  # type: ignore[arg-type]
    whole = sum(p.count * int(p.tensor.num_bytes) for p in every.parameters)  # type: ignore[arg-type]
    assert after(every, STEP, WEIGHT) == after(frozen, STEP, WEIGHT) == whole
    assert after(every, STEP, GRADIENT) == whole
    assert after(frozen, STEP, GRADIENT) == still
    states = [after(made, STEP, OPTIMIZER_STATE) for made in (every, frozen)]
    assert states[1] * whole == states[0] * still


@settings(deadline=None, max_examples=16)
@given(
    st.sampled_from(sorted(FAMILIES)),
    st.sampled_from(["full", "reentrant"]),
    st.integers(1, 3),
    st.sampled_from([16, 48]),
)
def test_checkpoints_never_keep_more_than_what_they_stand_for(family: str, how: str, batch: int, sequence: int) -> None:
    plain = trained(family, batch=batch, sequence=sequence)
    kept = trained(family, batch=batch, sequence=sequence, checkpointing=how)
    assert after(kept, FORWARD, ACTIVATION) < after(plain, FORWARD, ACTIVATION)
    assert after(kept, STEP, WEIGHT) == after(plain, STEP, WEIGHT)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_all_that_is_trained(family: str) -> None:
    made = trained(family, lora="2:all-linear", set_to_none=False)
    own = weigh.params(config(family)).total
    assert int(made.counted.total) == own + int(made.counted.trainable)
    assert after(made, STEP, GRADIENT) == sum(
        p.count * int(p.tensor.num_bytes)  # type: ignore[arg-type]
        for p in made.parameters
        if p.tensor.requires_grad
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"lora": "4:wings"}, "found none of wings"),
        ({"lora": {"rank": 4, "targets": ["q_proj"], "modules_to_save": ["wings"]}}, "wings"),
        ({"tensor": 3, "gpus_per_node": 3}, "tensor|divide"),
        ({"double_quantization": True}, "four-bit scales"),
        ({"quantization": "gptq", "upcast": "all", "lora": "4"}, "upcast"),
        (
            {"fused_kernels": "unsloth", "quantization": "int8", "lora": "4:q_proj,k_proj,v_proj"},
            "adapters to fuse|fused",
        ),
        ({"pipeline": 2, "gpus_per_node": 2}, "micro-batches"),
    ],
)
def test_what_finds_nothing_or_cannot_be_is_refused_with_a_reason(words: dict[str, Any], said: str) -> None:
    with pytest.raises(WeighError, match=said):
        trained("llama", **words)


def test_techniques_come_in_one_order_whatever_the_settings_are_written_in() -> None:
    words = {"checkpointing": "full", "quantization": "nf4", "lora": "4:q_proj", "dtype": "bf16", "shard": "fsdp2"}
    words["gpus_per_node"] = 2
    forward, backward = trained("llama", **words), trained("llama", **dict(reversed(words.items())))
    assert forward.trace.events == backward.trace.events
    assert list(map(str, forward.trace.allocations)) == list(map(str, backward.trace.allocations))


SHARDS = st.sampled_from(["fsdp1", "fsdp2", "zero3"])


@settings(deadline=None, max_examples=16)
@given(st.sampled_from(sorted(FAMILIES)), SHARDS, st.integers(1, 4), st.integers(1, 2), st.booleans())
def test_shares_of_all_ranks_are_the_whole_for_every_replica_and_their_padding(
    family: str, shard: str, each: int, replicas: int, offload: bool
) -> None:
    """Of weights, and of two states of Adam: nothing but padding, at most one row or element a parameter and rank."""
    replicas = 1 if shard == "zero3" else replicas  # ZeRO's own replicas (hpZ) are not modelled
    whole = trained(family, optimizer="adamw", implementation="foreach")
    held = int(sum(p.count * p.tensor.num_bytes for p in whole.parameters))
    padding = sum(p.count * int(p.tensor.num_bytes) // int(p.tensor.shape[0]) for p in whole.parameters)
    words: dict[str, Any] = {"shard": shard, "gpus_per_node": each * replicas, "replicas": replicas}
    words |= {"optimizer": "adamw", "zero_param_persistence_threshold": 1, "offload_parameters": offload}
    words |= {"implementation": "foreach", "offload_optimizer": offload and shard == "zero3"}
    found = [trained(family, **words, rank=rank) for rank in range(each * replicas)]
    for purpose, copies in ((WEIGHT, 1), (OPTIMIZER_STATE, 2)):
        on_device = sum(after(made, STEP, purpose) for made in found)
        if offload:
            assert on_device == 0
            assert all(made.elsewhere for made in found)
        else:
            assert 0 <= on_device - copies * replicas * held <= copies * replicas * each * (padding + 64)


@settings(deadline=None, max_examples=8)
@given(st.sampled_from(sorted(FAMILIES)), st.sampled_from([None, "full"]), st.integers(1, 2))
def test_what_waits_on_the_host_is_not_on_the_device(family: str, checkpointing: str | None, batch: int) -> None:
    words = {"batch": batch, "checkpointing": checkpointing}
    plain, offloaded = trained(family, **words), trained(family, **words, offload_activations=True)
    assert after(offloaded, FORWARD, ACTIVATION) < after(plain, FORWARD, ACTIVATION)
    assert after(offloaded, STEP, WEIGHT) == after(plain, STEP, WEIGHT)
    (waiting,) = offloaded.elsewhere.values()
    assert int(waiting) > 0
