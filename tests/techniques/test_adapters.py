"""peft's methods: what is refused, how they are read and written, and that alike blocks are run once.

`tests/torch/test_adapters.py` holds each of them against peft.
"""

from __future__ import annotations

from typing import Any

import pytest

from weigh.errors import NotModelledError, UsageError, WeighError
from weigh.recipes.settings import make, words_of
from weigh.recipes.trained import run
from weigh.recipes.training import Training
from weigh.techniques.adapters import KINDS, NOT_MODELLED, method, of_peft
from weigh.trace.peak import phase_peaks

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 67,
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 192,
}
SMALL = {"psoft": {"rank": 8}, "vera": {"rank": 8}, "gralora": {"rank": 4}}
RANK_OF_PEFT = {"lora": "r", "adalora": "init_r", "gralora": "r", "loha": "r", "lokr": "r", "psoft": "r", "vera": "r"}


def recipe(kind: str, **settings: Any) -> Training:
    adapter = {"kind": kind, **SMALL.get(kind, {})}
    return make(Training, {"batch": 2, "sequence": 24, "dtype": "bf16", "adapter": adapter, **settings})


@pytest.mark.parametrize("kind", KINDS)
def test_alike_blocks_are_run_once(kind: str) -> None:
    once, whole = (
        [int(p.peak) for p in phase_peaks(run(LLAMA, recipe(kind), unroll=unroll).trace)]  # type: ignore[arg-type]
        for unroll in (False, True)
    )
    assert once == whole


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_with_a_method_is_written_and_read(kind: str) -> None:
    made = recipe(kind)
    assert make(Training, words_of(made)) == made


@pytest.mark.parametrize("kind", KINDS)
def test_what_peft_writes_is_read(kind: str) -> None:
    adapter = recipe(kind).adapter
    assert adapter is not None
    found, words = of_peft({"peft_type": kind.upper(), "revision": None, "inference_mode": True, **adapter.as_peft()})
    assert make(found, words) == adapter


@pytest.mark.parametrize("kind", NOT_MODELLED)
def test_other_methods_are_refused_by_name(kind: str) -> None:
    with pytest.raises(NotModelledError, match=kind):
        method(kind)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"adapter": "ia4"}, UsageError, "Did you mean ia3"),
        ({"adapter": {"rank": 4}}, UsageError, "does not say its kind"),
        ({"adapter": "ia3:wings"}, WeighError, "ia3 found none of wings. This model has:"),
        ({"adapter": "ia3", "lora": "4"}, UsageError, "a LoRA is an adapter too"),
        ({"adapter": "vera", "quantization": "nf4"}, NotModelledError, "vera beside quantized layers"),
        ({"adapter": "prefix_tuning", "checkpointing": "full"}, UsageError, "does not work with checkpoints"),
        ({"adapter": "vera", "tensor": 2, "gpus_per_node": 2}, NotModelledError, "adapters of layers that tensor"),
        ({"adapter": {"kind": "boft", "block_size": 7}}, UsageError, "blocks of 7 in 64 inputs"),
        ({"lora": {"targets": ["q_proj"], "parameters": ["experts.w"]}}, WeighError, "no parameters experts.w"),
        ({"lora": {"targets": []}}, UsageError, "adapts nothing"),
    ],
)
def test_what_cannot_be_is_said(settings: dict[str, Any], error: type[WeighError], said: str) -> None:
    with pytest.raises(error, match=said):
        run(LLAMA, make(Training, {"sequence": 16, **settings}))
