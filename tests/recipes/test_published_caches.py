"""Caches of published models, each worked out by hand from its config."""

import pytest

import weigh

GIB, MIB = 2**30, 2**20


@pytest.mark.parametrize(
    ("model", "how", "num_bytes"),
    [
        ("llama-3-8b", {"context": 8192}, 8192 * 32 * 2 * 8 * 128 * 2),
        ("llama-3-8b", {"context": 8192, "tensor": 8}, 8192 * 32 * 2 * 1 * 128 * 2),
        ("llama-2-7b", {"context": 4096, "kv_dtype": "fp8"}, 4096 * 32 * 2 * 32 * 128),
        ("mixtral-8x7b", {"context": 32768}, 4 * GIB),
        ("mistral-7b-v0.1", {"context": 32768}, GIB // 2),
        ("mistral-7b-v0.1", {"context": 32768, "windows": "reserved"}, 4 * GIB),
        ("deepseek-v3", {"context": 4096}, 4096 * 61 * (512 + 64) * 2),
        ("deepseek-v3", {"context": 4096, "tensor": 8}, 4096 * 61 * (512 + 64) * 2),
        ("deepseek-v3", {"context": 4096, "latent": "expanded"}, 4096 * 61 * 128 * (192 + 128) * 2),
        ("gemma-3-27b-text", {"context": 32768}, (10 * 32768 + 52 * 1024) * 2 * 16 * 128 * 2),
        ("gemma-3-27b-text", {"context": 32768, "windows": "reserved"}, int(15.5 * GIB)),
        ("gpt-oss-20b", {"context": 131072}, (12 * 131072 + 12 * 128) * 2 * 8 * 64 * 2),
        ("jamba-v0.1", {"context": 32768}, GIB // 2 + 28 * 8192 * (16 + 4) * 2 + 28 * 8192 * 16 * 2),
        ("mamba-2.8b", {"context": 32768}, 64 * 5120 * (16 + 4) * 4),
        ("falcon-40b", {"context": 2048}, 2048 * 60 * 2 * 8 * 64 * 2),
        ("falcon-40b", {"context": 2048, "latent": "expanded"}, 2048 * 60 * 2 * 128 * 64 * 2),
        ("t5-11b", {"context": 512, "encoder": 1024, "dtype": "bf16"}, 24 * (512 + 1024) * 2 * 128 * 128 * 2),
    ],
)
def test_bytes(model: str, how: dict[str, object], num_bytes: int) -> None:
    assert weigh.kv(model, **how).num_bytes == num_bytes  # type: ignore[arg-type]


def test_transformers_keeps_falcons_heads_repeated() -> None:
    config = {
        "model_type": "falcon", "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
        "num_kv_heads": 2, "new_decoder_architecture": True, "dtype": "bfloat16",
    }  # fmt: skip
    run = weigh.generate(config, prompt=16, new_tokens=4)
    assert run.kv_cache_per_token == weigh.kv(config, context=16, latent="expanded").bytes_per_token
    assert run.kv_cache_per_token == 4 * weigh.kv(config, context=16).bytes_per_token


def test_qwen3_next() -> None:
    """80B A3B at 32,768 tokens: 0.75 GiB of keys and values in every fourth layer, and states in the others."""
    config = {
        "model_type": "qwen3_next", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5120,
        "num_hidden_layers": 48, "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256,
        "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
        "linear_num_key_heads": 16, "linear_num_value_heads": 32, "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512, "num_experts_per_tok": 10, "num_experts": 512,
        "max_position_embeddings": 262144, "dtype": "bfloat16",
    }  # fmt: skip
    report = weigh.kv(config, context=32768)
    state = 36 * (8192 * 4 * 2 + 32 * 128 * 128 * 4)
    assert report.state_bytes == state
    assert report.num_bytes == 768 * MIB + state
    assert report.bytes_per_token == 768 * MIB // 32768


def test_as_people_quote_them() -> None:
    assert round(weigh.kv("deepseek-v3", context=4096).num_bytes / GIB, 3) == 0.268
    assert round(weigh.kv("gemma-3-27b-text", context=32768).num_bytes / GIB, 2) == 2.91
