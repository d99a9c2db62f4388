"""Mixtral's experts one by one, as transformers 4 ran them."""

from typing import Any

import pytest

from weigh import runtimes
from weigh.dtypes import BFLOAT16
from weigh.errors import NotModelledError
from weigh.recipes.trained import TrainingRun, run
from weigh.recipes.training import Training
from weigh.techniques.lora import Lora
from weigh.trace.peak import phase_peaks

MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral",
    "vocab_size": 130,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
}


def adapted(unroll: bool = False, **settings: Any) -> TrainingRun:
    lora = Lora(rank=4, targets=("q_proj", "v_proj"))
    recipe = Training(batch=2, sequence=64, dtype=BFLOAT16, lora=lora, looped_experts=True, **settings)
    return run(MIXTRAL, recipe, unroll=unroll)


def peaks(made: TrainingRun) -> list[int]:
    return [int(p.peak) for p in phase_peaks(made.trace)]  # type: ignore[arg-type]


def test_compressed_and_unrolled_runs_have_the_same_peaks() -> None:
    assert peaks(adapted()) == peaks(adapted(True))


def test_every_expert_has_its_products_of_an_even_share() -> None:
    calls = [c for c in adapted(steps=1).trace.calls if c.op == "aten::index_add_"]
    share = 2 * 64 * 2 // 4
    assert len(calls) % 4 == 0
    rows = [a.shape[0] for a in adapted(steps=1).trace.allocations if a.op == "aten::index" and a.shape[-1] == 64]
    assert set(rows) == {share}


def test_trained_experts_are_refused() -> None:
    with pytest.raises(NotModelledError, match="one by one"):
        run(MIXTRAL, Training(batch=2, sequence=64, looped_experts=True))


def test_older_releases_loop() -> None:
    runtime = runtimes.get("transformers")
    assert runtime.settings({}, MIXTRAL, (4, 48))["looped_experts"]
    assert "looped_experts" not in runtime.settings({}, MIXTRAL, (5,))


def test_quantized_experts_are_modules_of_their_own() -> None:
    made = adapted(quantization="gptq", group_size=0)
    names = {name for p in made.parameters for name in p.names}
    assert "model.layers.5.mlp.experts.3.w2.weight" in names
    assert made.counted.total == adapted().counted.total
    packed = [a for a in made.trace.allocations if a.op == "dequant_kernel_248" and set(a.shape) == {64, 80}]
    assert packed
    assert peaks(made) == peaks(adapted(True, quantization="gptq", group_size=0))
