"""Models whose code stands in their own repositories: counted as others count them, and not run."""

import pytest

import weigh
from weigh.errors import NotModelledError, WeighError

QWEN_7B = {
    "model_type": "qwen",
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
QWEN_72B = QWEN_7B | {
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 49152,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
CHATGLM3_6B = {
    "model_type": "chatglm",
    "padded_vocab_size": 65024,
    "hidden_size": 4096,
    "ffn_hidden_size": 13696,
    "num_layers": 28,
    "num_attention_heads": 32,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "add_qkv_bias": True,
}
BAICHUAN2_7B = {
    "model_type": "baichuan",
    "vocab_size": 125696,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (QWEN_7B, 7_721_324_544),  # as the safetensors metadata of Qwen/Qwen-7B says
        (QWEN_72B, 144_575_840_256 // 2),  # total_size of its index, in bf16
        (CHATGLM3_6B, 12_487_168_064 // 2 - 32),  # total_size of its index, in fp16, less the 32 frequencies
    ],
)
def test_published_counts(config: dict[str, object], parameters: int) -> None:
    assert weigh.params(config).total == parameters


def test_baichuan_is_llama_with_one_projection() -> None:
    llama = BAICHUAN2_7B | {"model_type": "llama", "tie_word_embeddings": False}
    assert weigh.params(BAICHUAN2_7B).total == weigh.params(llama).total
    assert weigh.kv(BAICHUAN2_7B, context=4096).num_bytes == weigh.kv(llama, context=4096).num_bytes


def test_heads_shared_by_groups_are_kept_once() -> None:
    assert weigh.kv(CHATGLM3_6B, context=1000, dtype="fp16").num_bytes == 28 * 1000 * 2 * 2 * 128 * 2


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_qwen_runs(attention: str) -> None:
    small = QWEN_7B | {"num_hidden_layers": 4, "vocab_size": 1000}
    trained = weigh.train(small, sequence=64, dtype="bf16", attention=attention)
    assert trained.peak > 8 * trained.as_dict()["parameters"]["total"]
    assert weigh.generate(small, prompt=8, new_tokens=3, dtype="bf16", attention=attention).peak < trained.peak


@pytest.mark.parametrize("config", [CHATGLM3_6B, BAICHUAN2_7B])
def test_their_runs_are_refused(config: dict[str, object]) -> None:
    with pytest.raises(NotModelledError):
        weigh.train(config, sequence=16)


@pytest.mark.parametrize(
    "config",
    [CHATGLM3_6B | {"inner_hidden_size": 16384}, CHATGLM3_6B | {"pre_seq_len": 128}, QWEN_7B | {"kv_channels": 64}],
)
def test_other_models_of_the_same_name_are_refused(config: dict[str, object]) -> None:
    with pytest.raises(WeighError):
        weigh.params(config)
