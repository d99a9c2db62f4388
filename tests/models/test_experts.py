"""Mixtures of experts: how they run while a model generates, and what their configs may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import weigh
from weigh import models
from weigh.dtypes import BFLOAT16
from weigh.errors import InputError, NotModelledError
from weigh.ghost.state import recording
from weigh.models.common import CausalModel
from weigh.models.layout import LATENT
from weigh.recipes.generation import Generation, run
from weigh.trace.events import DECODE, PREFILL

MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral",
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 6,
}


def copies(device: str, **settings: Any) -> set[tuple[str, Any]]:
    """The phases in which the experts' weights are copied, and the copies' shapes."""
    trace = run(MIXTRAL, Generation(batch=3, prompt=7, new_tokens=4, device=device, **settings)).trace
    return {(a.phase, a.shape) for a in trace.allocations if a.op == "aten::index" and len(a.shape) == 3}


def test_decoding_copies_the_weights_of_the_chosen_experts() -> None:
    pairs = 3 * 2
    assert copies("cuda") == {(DECODE, (pairs, 2 * 48, 32)), (DECODE, (pairs, 32, 48))}


def test_beams_and_the_cpu_decode_group_by_group() -> None:
    assert copies("cpu") == set()
    assert copies("cuda", beams=2) == set()


def test_every_token_chooses_in_the_prefill_too() -> None:
    trace = run(MIXTRAL, Generation(batch=3, prompt=7, new_tokens=2)).trace
    sorts = {(a.phase, a.shape) for a in trace.allocations if a.op == "aten::sort"}
    assert sorts == {(PREFILL, (3 * 7 * 2,))}


def build(config: dict[str, Any]) -> CausalModel:
    with recording():
        return models.build(config, BFLOAT16)


def shapes(config: dict[str, Any]) -> list[Any]:
    with recording():
        return [p.tensor.shape for p in models.build(config, BFLOAT16).parameters()]


def test_the_number_of_experts_has_two_names() -> None:
    other = {k: v for k, v in MIXTRAL.items() if k != "num_local_experts"} | {"num_experts": 6}
    assert shapes(other) == shapes(MIXTRAL)


@pytest.mark.parametrize(("key", "value"), [("output_router_logits", True), ("router_jitter_noise", 0.1)])
def test_what_is_not_modelled_is_counted_and_does_not_run(key: str, value: Any) -> None:
    assert build(MIXTRAL | {key: value}).unmodelled[0].where == f"config: {key}"
    with pytest.raises(NotModelledError, match=f"{key}.*weigh params"):
        weigh.train(MIXTRAL | {key: value})


def test_latent_attention_has_a_key_for_every_head() -> None:
    with pytest.raises(InputError, match="num_key_value_heads"):
        build({"model_type": "deepseek_v3", "num_attention_heads": 8, "num_key_value_heads": 4})


LINES = (Path(__file__).parents[1] / "data/published.jsonl").read_text(encoding="utf-8").splitlines()
PUBLISHED: dict[str, Any] = {row["name"]: row["config"] for row in map(json.loads, LINES)}
PUBLISHED["deepseek-v3"] = {"model_type": "deepseek_v3"}
PUBLISHED["longcat-flash"] = {"model_type": "longcat_flash", "vocab_size": 131072, "hidden_size": 6144}
PUBLISHED["dbrx"] = {"model_type": "dbrx", "d_model": 6144, "n_heads": 48, "n_layers": 40, "vocab_size": 100352}
PUBLISHED["dbrx"]["attn_config"] = {"kv_n_heads": 8}
PUBLISHED["dbrx"]["ffn_config"] = {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4}


@pytest.mark.parametrize(
    ("name", "billions", "embedding"),
    [
        ("dbrx", 36, True),
        ("deepseek-v3", 37, False),
        ("gpt-oss-120b", 5.13, False),
        ("gpt-oss-20b", 3.61, False),
        ("longcat-flash", 27, False),
        ("mixtral-8x22b", 39, False),
        ("mixtral-8x7b", 12.9, True),
        ("qwen1.5-moe-a2.7b", 2.7, True),
        ("qwen3-235b-a22b", 22, True),
        ("qwen3-30b-a3b", 3.3, True),
    ],
)
def test_active_parameters_are_those_that_the_makers_state(name: str, billions: float, embedding: bool) -> None:
    """Model cards and technical reports; some leave out the embedding, of which a token reads one row."""
    model = build(PUBLISHED[name])
    found = sum(int(p.count * p.numel * p.active_share) for p in model.parameters())
    if not embedding:
        found -= PUBLISHED[name].get("vocab_size", 129280) * PUBLISHED[name].get("hidden_size", 7168)
    assert found / 1e9 == pytest.approx(billions, rel=0.02)  # as far as they are rounded


def test_latents_weigh_what_deepseek_states() -> None:
    """0.268 GiB at 4,096 tokens in bf16: 576 numbers a token and layer."""
    layers = build(PUBLISHED["deepseek-v3"]).cache_layout()
    assert {layer.kind for layer in layers} == {LATENT}
    assert sum(layer.latent_elements_per_token for layer in layers) * 4096 * 2 == 287_834_112
    assert layers[0].elements_per_token == 128 * (192 + 128)
