"""litgpt: blocks that stand for others, what its program keeps, and what it does not model."""

from typing import Any

import pytest

from weigh.errors import NotModelledError
from weigh.recipes.trained import TrainingRun, run
from weigh.recipes.training import Training
from weigh.runtimes import get
from weigh.techniques.lora import Lora
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
LITGPT = get("litgpt").loop
LORA = Lora(rank=4, targets=("q_proj", "v_proj", "mlp"), dropout=0.1)


def trained(config: dict[str, Any] | None = None, unroll: bool = False, **settings: Any) -> TrainingRun:
    recipe = Training(**{"batch": 2, "sequence": 32, "lora": LORA} | settings)
    return run(LLAMA | (config or {}), recipe, unroll=unroll, loop=LITGPT)


def peaks(found: TrainingRun) -> list[int]:
    return [int(p.peak) for p in phase_peaks(found.trace)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ({}, {}),
        ({"litgpt_adapter": "llama_adapter"}, {"lora": None}),
        ({"litgpt_adapter": "llama_adapter_v2"}, {"lora": None, "quantization": "nf4", "double_quantization": True}),
        ({}, {"quantization": "nf4"}),
        ({}, {"shard": "fsdp1", "gpus_per_node": 2, "checkpointing": "full", "accumulation": 3}),
    ],
)
def test_compressed_and_unrolled_runs_have_the_same_peaks(config: dict[str, Any], settings: dict[str, Any]) -> None:
    assert peaks(trained(config, **settings)) == peaks(trained(config, unroll=True, **settings))


def test_only_what_is_fine_tuned_wants_a_gradient() -> None:
    lora = [p for p in trained(steps=1).parameters if p.tensor.requires_grad]
    assert all("lora_" in name for p in lora for name in p.names)
    second = trained({"litgpt_adapter": "llama_adapter_v2"}, lora=None, steps=1).parameters
    wanted = [name for p in second if p.tensor.requires_grad for name in p.names]
    assert "h.0.norm_1.weight" in wanted
    assert "h.2.attn.gating_factor" in wanted
    assert not any(name.endswith("linear.weight") or name == "wte.weight" for name in wanted)


def test_the_inputs_of_quantized_layers_outlive_their_step() -> None:
    kept = [int(phase_peaks(trained(quantization=q, optimizer="sgd").trace)[-1].after) for q in (None, "nf4")]  # type: ignore[arg-type]
    weights = [int(phase_peaks(trained(quantization=q, optimizer="sgd").trace)[0].after) for q in (None, "nf4")]  # type: ignore[arg-type]
    inputs = 8 * 2 * 32 * (3 * 64 + 96) * 4
    assert kept[1] - weights[1] >= kept[0] - weights[0] + inputs


def test_without_synchronisation_gradients_are_whole_on_every_rank() -> None:
    settings: dict[str, Any] = {"shard": "fsdp1", "gpus_per_node": 4, "steps": 1}
    one, three = (max(peaks(trained(accumulation=n, **settings))) for n in (1, 3))
    frozen_and_trained = sum(int(p.numel) * p.count for p in trained(steps=1).parameters)  # type: ignore[call-overload]
    assert three - one > 0.7 * 4 * frozen_and_trained


def test_full_fine_tuning_and_other_families_are_refused() -> None:
    with pytest.raises(NotModelledError, match="full fine-tuning"):
        trained(lora=None)
    with pytest.raises(NotModelledError, match="litgpt's mixtral"):
        trained({"model_type": "mixtral"})
