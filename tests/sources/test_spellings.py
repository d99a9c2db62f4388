"""Models in other words (params.json, Megatron), keys that no family reads, adapters."""

import json
from pathlib import Path
from typing import Any

import pytest
from fakehub import FakeHub
from making import CONFIG, llama_tensors, safetensors

import weigh
from weigh.errors import InputError, NotModelledError, UnknownNameError
from weigh.models.unread import unread
from weigh.sources.files import parse_config, translate

MISTRAL_7B = {
    "dim": 4096,
    "n_layers": 32,
    "head_dim": 128,
    "hidden_dim": 14336,
    "n_heads": 32,
    "n_kv_heads": 8,
    "norm_eps": 1e-05,
    "sliding_window": 4096,
    "vocab_size": 32000,
}
MIXTRAL_8X7B = {**MISTRAL_7B, "sliding_window": None, "moe": {"num_experts_per_tok": 2, "num_experts": 8}}
LLAMA_2_70B = {
    "dim": 8192,
    "multiple_of": 4096,
    "ffn_dim_multiplier": 1.3,
    "n_heads": 64,
    "n_kv_heads": 8,
    "n_layers": 80,
    "norm_eps": 1e-05,
    "vocab_size": 32000,
}
LLAMA_3_8B = {
    "dim": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": 8,
    "vocab_size": 128256,
    "multiple_of": 1024,
    "ffn_dim_multiplier": 1.3,
    "norm_eps": 1e-05,
    "rope_theta": 500000.0,
}


@pytest.mark.parametrize(
    ("params", "published"),
    [
        (MISTRAL_7B, 7_241_732_096),
        (MIXTRAL_8X7B, 46_702_792_704),
        (LLAMA_2_70B, 68_976_648_192),
        (LLAMA_3_8B, 8_030_261_248),
    ],
)
def test_params_json(tmp_path: Path, params: dict[str, Any], published: int) -> None:
    (tmp_path / "params.json").write_text(json.dumps(params))
    assert weigh.params(tmp_path).total == weigh.params(tmp_path / "params.json").total == published
    assert weigh.params(params).total == published


def test_params_json_that_says_more_or_less() -> None:
    with pytest.raises(InputError, match=r"vocab_size: is -1. Llama 1 and 2 have 32000"):
        translate({**LLAMA_2_70B, "vocab_size": -1})
    with pytest.raises(NotModelledError, match="'vision_encoder'"):
        translate({**MISTRAL_7B, "vision_encoder": {"hidden_size": 1024}})
    with pytest.raises(NotModelledError, match="such a 'moe'"):
        translate({**MISTRAL_7B, "moe": {"num_experts": 8, "num_experts_per_tok": 2, "num_shared_experts": 1}})
    with pytest.raises(InputError, match="multiple_of"):
        translate({**LLAMA_2_70B, "multiple_of": "x"})


GPT_345M = (
    "--num-layers 24 --hidden-size 1024 --num-attention-heads 16 --seq-length 1024 --max-position-embeddings 1024 "
    "--vocab-size 50257 --micro-batch-size 4"
)
LLAMA_ARGS = (
    "torchrun --nproc_per_node 8 pretrain_gpt.py \\\n --num-layers 32 --hidden-size 4096 --ffn-hidden-size 14336 "
    "--num-attention-heads 32 --group-query-attention --num-query-groups 8 --swiglu --normalization RMSNorm "
    "--position-embedding-type rope --untie-embeddings-and-output-weights --disable-bias-linear --vocab-size 128256"
)


def test_megatrons_arguments(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(LLAMA_ARGS)
    assert weigh.params(tmp_path / "train.txt").total == 8_030_261_248
    gpt = weigh.params(parse_config(GPT_345M))
    assert gpt.total == 354_871_296  # 50,304 tokens: the vocabulary is filled up
    assert gpt.source.config["vocab_size"] == 50_304


def test_megatrons_names_in_a_dict() -> None:
    config = {
        "num_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "padded_vocab_size": 512,
        "swiglu": True,
        "normalization": "RMSNorm",
        "position_embedding_type": "rope",
        "add_bias_linear": False,
    }
    assert translate(config)["intermediate_size"] == 128  # int(4 * 64 * 2 / 3) down to a multiple of 64
    assert translate({**config, "qk_layernorm": True})["model_type"] == "qwen3"
    assert translate({**config, "add_qkv_bias": True})["model_type"] == "qwen2"
    mixtral = translate({**config, "num_experts": 8})
    assert (mixtral["model_type"], mixtral["num_experts_per_tok"]) == ("mixtral", 2)
    biased = weigh.params({**config, "add_bias_linear": True}).tensors()
    assert "model.layers.0.mlp.up_proj.bias" in biased
    for wrong, message in (
        ({"multi_latent_attention": True}, "multi_latent_attention"),
        ({"normalization": "LayerNorm"}, "rope with LayerNorm"),
        ({"num_experts": 8, "qk_layernorm": True}, "qk_layernorm with num_experts"),
    ):
        with pytest.raises(NotModelledError, match=message):
            translate({**config, **wrong})
    with pytest.raises(InputError, match=r"num_attention_heads: is '4'. Give --num-attention-heads"):
        translate({**config, "num_attention_heads": "4"})


def named(config: dict[str, Any]) -> list[str]:
    return [a.what for a in weigh.params(config).assumptions if "mean" in a.what]


def test_keys_that_the_family_does_not_read_are_named() -> None:
    assert named(CONFIG) == []
    assert named({**CONFIG, "num_extra_layers": 4}) == ["num_extra_layers of the config means nothing"]
    assert named({**CONFIG, "num_hiden_layers": 4, "my_experts": 2}) == [
        "num_hiden_layers, my_experts of the config mean nothing"
    ]


def test_what_switches_nothing_on_or_changes_no_tensor_is_not_named() -> None:
    off: dict[str, Any] = {"my_experts": 0, "my_flag": False, "my_list": [], "my_name": None}
    harmless = {"transformers_version": "5", "bos_token_id": 1, "router_aux_loss_coef": 0.1, "my_dropout": 0.5}
    assert named({**CONFIG, **off, **harmless}) == []


def test_keys_of_nested_configs() -> None:
    config = {"text_config": {"hidden_size": 8, "my_layers": 2}, "other_config": {"x": 1}}
    read = frozenset({"text_config", "hidden_size", "other_config"})
    assert unread(config, read) == ("text_config.my_layers",)


DERIVED = {"mamba", "mpt", "t5"}
"""Families whose configs repeat what follows from other keys, or say what their classes take for granted."""


def test_bundled_models_have_no_such_keys_but_layers_that_are_not_made() -> None:
    from weigh.sources.catalogue import entries

    assert entries()
    for entry in entries():
        if entry.config["model_type"] not in DERIVED:
            assert set(unread_of(entry.config)) <= {"num_nextn_predict_layers"}, entry.name


def unread_of(config: Any) -> tuple[str, ...]:
    from weigh import dtypes, models
    from weigh.ghost.state import recording

    with recording():
        return models.build(config, dtypes.FLOAT32).unread


ADAPTER = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"], "lora_alpha": 8}
LORA = {
    f"base_model.model.model.layers.{i}.self_attn.{name}.lora_{half}.weight": shape
    for i in range(2)
    for name, width in (("q_proj", 16), ("v_proj", 8))
    for half, shape in (("A", (4, 16)), ("B", (width, 4)))
}
LORA_TOTAL = 2 * (4 * 16 + 16 * 4 + 4 * 16 + 8 * 4)


def adapter(base: str) -> dict[str, bytes]:
    return {
        "adapter_config.json": json.dumps({**ADAPTER, "base_model_name_or_path": base}).encode(),
        "adapter_model.safetensors": safetensors(LORA, "F32", 4),
    }


def test_an_adapter_on_this_disk(tmp_path: Path) -> None:
    base, folder = tmp_path / "base", tmp_path / "adapter"
    for path in (base, folder):
        path.mkdir()
    (base / "config.json").write_text(json.dumps(CONFIG))
    for name, data in adapter(str(base)).items():
        (folder / name).write_bytes(data)
    found = weigh.model(folder)
    assert found.config == CONFIG
    assert found.adapter is not None
    assert found.adapter["r"] == 4
    assert found.adapter_checkpoint is not None
    assert {name: t.shape for name, t in found.adapter_checkpoint.tensors.items()} == LORA
    report = weigh.params(folder)
    assert report.trainable == LORA_TOTAL
    assert report.total == weigh.params(CONFIG).total + LORA_TOTAL
    (base / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": 9}))
    assert weigh.params(folder).trainable == LORA_TOTAL // 2 * 9


def test_an_adapter_on_the_hub(hub: FakeHub) -> None:
    hub.add("org/base", {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": safetensors(llama_tensors())})
    hub.add("org/adapter", adapter("org/base"))
    found = weigh.model("org/adapter")
    assert found.name == "org/adapter on org/base"
    assert found.checkpoint is not None
    assert weigh.params("org/adapter").trainable == LORA_TOTAL
    hub.add("org/bundled", adapter("meta-llama/Llama-2-7b-hf"))
    assert weigh.model("org/bundled").name == "org/bundled on llama-2-7b"


def test_a_strangers_adapter_cannot_name_a_path_of_this_disk(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    for base in (str(tmp_path), "./x", "../secret/x", f"file://{tmp_path}", f"{hub.endpoint}/x", "-"):
        hub.add("org/adapter", adapter(base))
        with pytest.raises(InputError, match=r"base_model_name_or_path: leads to .*is no name of a model"):
            weigh.model("org/adapter")


def test_adapters_of_adapters_and_of_nothing(hub: FakeHub) -> None:
    hub.add("org/a", adapter("org/b"))
    hub.add("org/b", adapter("org/a"))
    with pytest.raises(InputError, match="adapter of an adapter"):
        weigh.model("org/a")
    hub.add("org/c", {"adapter_config.json": json.dumps(ADAPTER).encode()})
    with pytest.raises(InputError, match="names no model"):
        weigh.model("org/c")


def test_a_bundled_name_comes_first_and_a_bare_word_is_no_id(cache: Path) -> None:
    assert cache
    assert weigh.model("meta-llama/Llama-2-7b-hf").name == "llama-2-7b"  # no server was asked
    with pytest.raises(UnknownNameError, match=r"ORG/NAME on the Hub"):
        weigh.model("some-model")
    with pytest.raises(InputError, match="cannot be"):
        weigh.model("meta-llama/Llama-2-7b-hf@main")


def test_unknown_schemes(cache: Path) -> None:
    assert cache
    with pytest.raises(InputError, match="has the scheme 'gopher'"):
        weigh.model("gopher://host/model")
    with pytest.raises(InputError, match="has the scheme 'file'"):
        weigh.model("file:///etc/passwd")


def test_a_config_that_spells_its_sizes_so_is_no_params_json() -> None:
    distilbert = {"model_type": "distilbert", "dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072}
    assert (
        weigh.params({**distilbert, "vocab_size": 30522, "architectures": ["DistilBertForMaskedLM"]}).total
        == 66_985_530
    )
