"""Kernels of a step, block by block, beside the lists of them in vLLM's models."""

import pytest

from weigh import api
from weigh.recipes.launches import ENDS, launches

ATTENTION = ("norm with residual", "qkv", "rotary", "reshape_and_cache", "attention", "o")
LATENT = (
    *("norm with residual", "q_a and kv_a", "norm of q", "q_b", "norm of kv", "rotary", "concat_and_cache"),
    *("q into the latent", "attention", "v out of the latent", "o"),
)
DENSE = ("norm with residual", "gate_up", "silu_and_mul", "down")
EXPERTS = (
    *("norm with residual", "router", "topk_softmax", "moe_align_block_size", "count_and_sort_expert_tokens"),
    *("w13", "silu_and_mul", "w2", "moe_sum"),
)
SHARED = ("gate_up", "silu_and_mul", "down", "add")
QK_NORM = ("norm of q", "norm of k")


@pytest.mark.parametrize(
    ("model", "blocks"),
    [
        ("llama-3-8b", 32 * [ATTENTION + DENSE]),
        ("qwen2.5-7b", 28 * [ATTENTION + DENSE]),
        ("qwen3-8b", 36 * [ATTENTION + QK_NORM + DENSE]),
        ("mixtral-8x7b", 32 * [ATTENTION + EXPERTS]),
        ("gpt-oss-20b", 24 * [ATTENTION + EXPERTS]),
        ("qwen3-30b-a3b", 48 * [ATTENTION + QK_NORM + EXPERTS]),
        ("deepseek-v3", 3 * [LATENT + DENSE] + 58 * [LATENT + EXPERTS + SHARED]),
    ],
)
def test_a_block_starts_what_vllm_runs(model: str, blocks: list[tuple[str, ...]]) -> None:
    found = launches(api.ghost(api.model(model)).parameters())
    assert found == ENDS + sum(map(len, blocks))


def test_models_without_rotation_or_gates_have_a_fixed_number_too() -> None:
    """A block of GPT-2: two norms, four products, three kernels of attention, one activation."""
    assert launches(api.ghost(api.model("gpt2")).parameters()) == ENDS + 12 * 10
