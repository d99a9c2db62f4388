"""What flags of engines take: against the arithmetic of the engines' own sources, and laws."""

import json
from pathlib import Path

import pytest

import weigh
from weigh import dtypes
from weigh.errors import NotModelledError, UsageError
from weigh.runtimes import fused, sglang, sharding
from weigh.runtimes.engine import Launch, Served
from weigh.sources.source import Source

LINES = (Path(__file__).parents[1] / "data" / "measured" / "serving.jsonl").read_text(encoding="utf-8").splitlines()
HYBRID = next(row["model"]["config"] for row in map(json.loads, LINES) if row["id"] == "vl-046")
"""Qwen3.5 27B, whose layers are recurrent but for each fourth, and which sees."""


def launch(model: object, device: str, runtime: str = "vllm", **settings: object) -> Launch:
    return weigh.serve(model, device, runtime, **settings).launch


def test_ranks_that_share_tokens_multiply_them() -> None:
    """Latent vectors are the same on every rank, so that eight ranks have room for eight times the tokens."""
    words = {"tensor": 8, "quantization": "fp8", "context": 4096}
    alone, shared = (launch("deepseek-v3", "b200x8", **words, decode_context_parallel_size=ranks) for ranks in (1, 8))
    assert alone.blocks == shared.blocks
    assert shared.tokens == 8 * (alone.tokens or 0)
    assert shared.demand(4096, 1) * 8 == alone.demand(4096, 1)


@pytest.mark.parametrize(
    ("model", "words", "said"),
    [
        ("llama-3-8b", {"tensor": 4, "decode_context_parallel_size": 2}, "none of 8 key-value heads is on 2 of 4"),
        ("deepseek-v3", {"tensor": 8, "decode_context_parallel_size": 3}, "no divisor"),
        ("gpt-oss-20b", {"tensor": 8, "decode_context_parallel_size": 1, "enable_eplb": True}, "whole experts"),
        ("qwen3-30b-a3b", {"tensor": 2, "expert": True, "num_redundant_experts": 2}, "balance of experts"),
        ("llama-3-8b", {"tensor": 2, "expert": True, "enable_eplb": True}, "has no experts"),
        ("deepseek-v3", {"tensor": 8, "kv_dtype": "int8_per_token_head"}, "no heads of its own"),
        ("llama-3-8b", {"kv_dtype": "fp8_ds_mla"}, "latent vectors"),
        ("deepseek-v3", {"tensor": 8, "kv_dtype": "nvfp4"}, "no cache in four bits"),
        ("gemma-2-2b", {"disable_sliding_window": True, "context": 8192}, "more than the window's 4,096"),
    ],
)
def test_what_vllm_refuses(model: str, words: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        launch(model, "b200x8", **words)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("runtime", "names"),
    [("vllm", ("enable_eplb", "num_redundant_experts")), ("sglang", ("enable_eplb", "ep_num_redundant_experts"))],
)
def test_redundant_experts_are_whole_experts(runtime: str, names: tuple[str, str]) -> None:
    """Eight ranks with 128 experts and 8 that are there twice: one more on each, in all 48 layers."""
    words = {"tensor": 8, "expert": True}
    plain, more = (
        launch("qwen3-30b-a3b", "h100x8", runtime, **words, **{names[0]: True, names[1]: count}) for count in (None, 8)
    )
    assert more.routed - plain.routed == 48 * 3 * 2048 * 768 * 2


def test_vllm_notes_loads_and_places_of_experts() -> None:
    words = {"tensor": 8, "expert": True}
    found = launch("qwen3-30b-a3b", "h100x8", **words, enable_eplb=True, num_redundant_experts=8).shares[0].parts
    part = next(part for part in found if part.what == "balance of experts")
    notes = 4 * 1001 * 136 + 8 * (136 + 128 + 128 * 1024)
    assert part.num_bytes == 48 * notes + 17 * 3 * 2048 * 768 * 2


def test_slots_of_sglangs_adapters() -> None:
    """The shapes of `LoRAMemoryPool`: A is (slots, stacked x rank, inputs), B is (slots, outputs, rank)."""
    layers, hidden, inner, heads, groups, width, rank, slots, ranks = 32, 4096, 14336, 32, 8, 128, 16, 8, 4
    a = {"qkv": 3 * hidden, "o": heads * width // ranks, "gate_up": 2 * hidden, "down": inner // ranks}
    b = {"qkv": (heads + 2 * groups) * width // ranks, "o": hidden, "gate_up": 2 * inner // ranks, "down": hidden}
    words = {"tensor": ranks, "enable_lora": True, "max_lora_rank": rank}
    for names, chosen in (("all", a), ("q_proj o_proj", ("qkv", "o"))):
        parts = launch("llama-3-8b", "h100x4", "sglang", **words, lora_target_modules=names).shares[0].parts
        found = next(part.num_bytes for part in parts if part.what == "adapters and records")
        assert found == 2 * layers * slots * rank * sum(a[name] + b[name] for name in chosen)
    with pytest.raises(UsageError, match="no layer is called"):
        launch("llama-3-8b", "h100", "sglang", enable_lora=True, lora_target_modules="w_proj")


@pytest.mark.parametrize(
    ("runtime", "kv_dtype", "bits", "scales"),
    [
        ("vllm", "nvfp4", 4.5, 0),
        ("sglang", "fp4_e2m1", 4.5, 0),
        ("vllm", "int8_per_token_head", 8, 4),
        ("vllm", "int4_per_token_head", 4, 4),
    ],
)
def test_formats_of_keys_and_values(runtime: str, kv_dtype: str, bits: float, scales: int) -> None:
    needed = launch("llama-3-8b", "b200", runtime, kv_dtype=kv_dtype).demand(4096, 3)
    assert needed == 3 * 4096 * 32 * 8 * 2 * (128 * bits / 8 + scales)


def test_four_bits_want_their_kernels() -> None:
    with pytest.raises(UsageError, match="no kernels for nvfp4"):
        launch("llama-3-8b", "h100", kv_dtype="nvfp4")


def test_an_encoders_tokens_are_kept() -> None:
    """Whisper: 448 tokens of its own and 1,500 of the encoder's, in blocks of 16, for each of 32 layers."""
    found = launch("openai/whisper-large-v3", "h100")
    assert found.longest == 448
    assert found.demand(448, 2) == 2 * (28 + 94) * 16 * 32 * 2 * 1280 * 2
    with pytest.raises(NotModelledError, match="cross attention in SGLang"):
        launch("openai/whisper-large-v3", "h100", "sglang")


def test_states_in_other_formats() -> None:
    sizes = [
        launch(HYBRID, "h200", runtime, **words).demand(1, 100)
        for runtime, words in (
            ("vllm", {"mamba_ssm_cache_dtype": "float32"}),
            ("vllm", {"mamba_ssm_cache_dtype": "bfloat16"}),
            ("sglang", {"mamba_ssm_dtype": "float32"}),
            ("sglang", {"mamba_ssm_dtype": "bfloat16"}),
        )
    ]
    assert sizes[0] > sizes[1]
    assert sizes[2] > sizes[3]


def test_encoders_whole_on_every_rank() -> None:
    one = Served(Source("m", HYBRID, "m", "m"), dtypes.BFLOAT16)
    seen = [
        sum(held.num_bytes for held in fused.held(one, rank) if "visual" in held.name)
        for rank in (sharding.Rank(), sharding.Rank(4, 4), sharding.Rank(4, 4, towers_whole=True))
    ]
    assert seen[0] == seen[2] > 3 * seen[1]


def test_tensorrt_llm_gives_a_fraction_of_what_its_prompts_leave() -> None:
    """Made-up prompts fill a step: two of 4,096 tokens sample two logits, not as many as there may be requests."""
    found = launch("llama-3-8b", "h100", "tensorrt-llm", context=4096)
    share = found.shares[0]
    rest = (share.memory_bytes or 0) - sum(part.num_bytes for part in share.parts if part.of != "KV cache")
    per_token = 32 * 8 * 128 * 2 * 2
    assert found.tokens == int(rest * 0.9) // (32 * per_token) * 32
    assert share.of("activations") < 2**30
    assert launch("llama-3-8b", "h100", "tensorrt-llm", max_tokens=10_000).tokens == 10_000 // 32 * 32
    with pytest.raises(NotModelledError, match="recurrent states"):
        launch(HYBRID, "h200", "tensorrt-llm")


def test_replicas_of_sglang_share_no_experts() -> None:
    """`--dp-size` alone starts whole copies (`data_parallel_controller.py: launch_dp_schedulers`)."""
    copies, one, shared = (
        launch("qwen3-30b-a3b", "h200x8", "sglang", context=4096, **words).shares[0].of("weights")
        for words in ({"data": 4, "tensor": 2}, {"tensor": 2}, {"data": 4, "tensor": 8, "enable_dp_attention": True})
    )
    assert copies == one > shared


def test_speed_is_not_said_of_what_drafts() -> None:
    report = weigh.serve("deepseek-v3", "h200x8", "sglang", tensor=8, context=4096, speculative_algorithm="NEXTN")
    assert "speculative" in (report.speed.unsaid or "")


def test_only_one_backend_of_tensorrt_llm() -> None:
    with pytest.raises(NotModelledError, match="tensorrt"):
        launch("llama-3-8b", "h100", "tensorrt-llm", backend="tensorrt")


@pytest.mark.parametrize(
    ("config", "layer_type", "rows"),
    [
        ({}, "inv_freq", 1000),
        ({"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "inv_freq", 8000),
        ({"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "full_attention", 8000),
        ({"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "sliding_attention", 1000),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding_attention": {}}},
            "full_attention",
            8000,
        ),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100}}, "inv_freq", 400),
        ({"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 100}, "inv_freq", 1100),
        ({"rope_scaling": {"type": "default", "mrope_section": [1, 1, 1]}}, "inv_freq", 4000),
    ],
)
def test_rows_of_rotary_tables(config: dict[str, object], layer_type: str, rows: int) -> None:
    """As the classes of vLLM's `rotary_embedding` make them; windows turn plainly."""
    assert fused._positions(config, layer_type, 1000) == rows


def test_drafts_of_sglang_by_release() -> None:
    """Tokens besides for what is drafted (0.5.6), neither that nor a budget (0.5.12), both in the budget (0.5.23)."""
    words = {"tensor": 8, "context": 4096, "speculative_algorithm": "NEXTN", "num_draft_tokens": 4}
    words |= {"mem_fraction_static": 0.9}
    oldest, older, newest = (
        launch("deepseek-v3", "h200x8", f"sglang@{release}", **words) for release in ("0.5.6", "0.5.12", "0.5.23")
    )
    assert (oldest.tokens or 0) - (older.tokens or 0) == sglang.headroom(48, 3, 1, 4)
    for found in (oldest, older, newest):
        share = found.shares[0]
        sizes = {part.what: part.num_bytes for part in share.parts}
        assert sizes["KV cache of the draft"] * 61 == sizes["KV cache"]
        assert found.most_sequences == 48
    sizes = {part.what: part.num_bytes for part in newest.shares[0].parts}
    budgeted = ((older.tokens or 0) * 61 * 1152 - sizes["draft model"]) // (62 * 1152)
    assert abs((newest.tokens or 0) - budgeted) <= 1


@pytest.mark.parametrize(
    ("model", "device", "release", "words", "kept"),
    [
        ("llama-3-8b", "h100", "0.5.6", {}, 512 + 8192 * 1.5 + 256 * 2 + 128),
        ("llama-3-8b", "h100", "0.5.12", {}, 512 + 8192 * 1.5 + 256 * 2 + 128 + 58 * 8),
        ("llama-3-8b", "h100", "0.5.12", {"enable_lora": True}, 512 + 8192 * 1.5 + 256 * 2 + 128),
        ("llama-3-8b", "h100", "0.5.23", {"max_running_requests": 8}, 512 + 8192 * 1.5 + 8 * 2 + 128 + 58 * 8),
        ("llama-3-8b", "rtx-4090", "0.5.6", {}, 512 + 2048 * 1.5 + 24 * 2 + 128),
        ("llama-3-8b", "rtx-4090", "0.5.23", {}, 512 + 4096 * 1.5 + 48 * 2 + 128 + 50 * 8),
        ("llama-3-8b", "mi300x", "0.5.23", {}, 512 + 16384 * 1.5 + 512 * 2 + 128),
        ("deepseek-v3", "h200x8", "0.5.23", {"tensor": 8}, 512 + 8192 * 1.5 + 512 * 2 + 8 * 128 + 1536),
        (
            "deepseek-v3",
            "h200x8",
            "0.5.6",
            {"tensor": 8, "speculative_algorithm": "NEXTN"},
            512 + 8192 * 1.5 + 512 * 2 + 8 * 128 + 2048,
        ),
    ],
)
def test_what_sglang_keeps_free(model: str, device: str, release: str, words: dict[str, object], kept: float) -> None:
    """The sums of `_handle_gpu_memory_settings` by hand, in MiB."""
    settings = {"context": 4096} | words
    found = launch(model, device, f"sglang@{release}", **settings)
    memory = (found.shares[0].memory_bytes or 0) // 2**20
    given = launch(model, device, f"sglang@{release}", mem_fraction_static=round(1 - kept / memory, 3), **settings)
    assert found.tokens == given.tokens


def test_methods_without_kernels_for_an_old_device_are_refused() -> None:
    for method in ("fp8", "awq", "w8a8", "nvfp4"):
        with pytest.raises(UsageError, match=r"from compute capability 7\.5 on, and this device has 7\.0"):
            launch("llama-3-8b", "v100-32gb", quantization=method)
    assert launch("llama-3-8b", "v100-32gb", quantization="gptq").supply
    assert launch("llama-3-8b", "t4", quantization="awq").supply
