"""Weights as they are stored: predicted from a config, and read from a header."""

from typing import Any

import pytest

import weigh
from weigh import formats
from weigh.errors import InputError, NotModelledError, UnknownNameError
from weigh.formats.header import differences
from weigh.report.stored import StoredWeights
from weigh.sources.checkpoint import Checkpoint, StoredTensor
from weigh.sources.source import Source

LLAMA: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 96, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 64, "dtype": "bfloat16",
}  # fmt: skip
BLOCKS = 2 * (4 * 128 * 128 + 3 * 128 * 256)
REST = 2 * 96 * 128 + 5 * 128


def stored(**quantization: Any) -> StoredWeights:
    found = weigh.params({**LLAMA, "quantization_config": quantization}).stored
    assert found is not None
    assert found.parameters == BLOCKS + REST
    return found


def test_gptq_has_a_scale_a_zero_and_an_order() -> None:
    found = stored(quant_method="gptq", bits=4, group_size=64)
    groups = BLOCKS // 64
    order = 2 * (6 * 128 + 256) * 4
    assert found.num_bytes == BLOCKS // 2 + groups * 2 + groups // 2 + order + REST * 2


def test_gptq_changes_and_excepts_modules() -> None:
    plain = stored(quant_method="gptq", bits=4, group_size=64)
    dynamic = {"-:.*down_proj": {}, "+:.*up_proj": {"bits": 8}}
    found = stored(quant_method="gptq", bits=4, group_size=64, dynamic=dynamic)
    down = 2 * 128 * 256
    was = down // 2 + down // 64 * 2 + down // 64 // 2 + 2 * 256 * 4
    wider = down // 2 + down // 64 // 2
    assert found.num_bytes - plain.num_bytes == 2 * down - was + wider


def test_awq_is_asymmetric_and_knows_no_order() -> None:
    found = stored(quant_method="awq", bits=4, group_size=128, modules_to_not_convert=["self_attn"])
    mlp, attention = 2 * 3 * 128 * 256, 2 * 4 * 128 * 128
    assert found.num_bytes == mlp // 2 + mlp // 128 * 2 + mlp // 128 // 2 + (attention + REST) * 2
    assert found.by_dtype()["int32"] == (mlp // 2 + mlp // 128 // 2, mlp)


def test_mlx_quantizes_embeddings_too() -> None:
    config = {**LLAMA, "quantization": {"bits": 4, "group_size": 32, "lm_head": {"bits": 8, "group_size": 64}}}
    found = weigh.params(config).stored
    assert found is not None
    head = 96 * 128
    four = BLOCKS + head
    assert found.num_bytes == four // 2 + four // 32 * 4 + head + head // 64 * 4 + 5 * 128 * 2
    assert found.bits_per_weight < 5.6


def test_nvfp4_of_modelopt() -> None:
    found = stored(quant_method="modelopt", quant_algo="NVFP4", ignore=["lm_head"])
    assert found.num_bytes == BLOCKS // 2 + BLOCKS // 16 + 14 * 8 + REST * 2


def test_rows_of_fbgemm() -> None:
    found = stored(quant_method="fbgemm_fp8", modules_to_not_convert=["lm_head", "model.layers.0"])
    half, rows = BLOCKS // 2, 4 * 128 + 2 * 256 + 128
    assert found.num_bytes == half + rows * 4 + half * 2 + REST * 2


def test_experts_of_gpt_oss() -> None:
    config = {
        "model_type": "gpt_oss", "vocab_size": 96, "hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "num_local_experts": 4,
        "num_experts_per_tok": 2, "dtype": "bfloat16", "layer_types": ["full_attention"],
        "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    }  # fmt: skip
    report = weigh.params(config)
    assert report.stored is not None
    experts = 4 * 3 * 128 * 64
    assert report.stored.num_bytes == experts // 2 + experts // 32 + (report.total - experts) * 2
    assert report.stored.parameters == report.total


@pytest.mark.parametrize("method", sorted(formats.KNOWN))
def test_methods_that_are_not_described_are_named(method: str) -> None:
    report = weigh.params({**LLAMA, "quantization_config": {"quant_method": method}})
    assert report.stored is None
    assert any(method in a.why for a in report.assumptions)
    with pytest.raises(NotModelledError, match=method):
        formats.read({"quantization_config": {"quant_method": method}})


@pytest.mark.parametrize(
    ("quantization", "error", "says"),
    [
        ({"quant_method": "gptk"}, UnknownNameError, "gptq"),
        ({"quant_method": "gptq"}, InputError, "bits: is missing"),
        ({"quant_method": "gptq", "bits": 5}, NotModelledError, "5 bits"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"-:(": {}}}, InputError, "dynamic"),
        ({"quant_method": "awq", "version": "gemv"}, NotModelledError, "gemv"),
        ({"quant_method": "compressed-tensors"}, InputError, "config_groups"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, InputError, "weight_block_size"),
        ({"quant_method": "fp8", "modules_to_not_convert": "lm_head"}, InputError, "no list of names"),
        ({"quant_method": "torchao", "quant_type": "int4wo"}, InputError, "quant_type"),
        ("gptq", InputError, "is no object"),
    ],
)
def test_what_cannot_be_is_refused(quantization: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        formats.read({**LLAMA, "quantization_config": quantization})


def checkpoint(*rows: tuple[str, tuple[int, ...], str, int]) -> Checkpoint:
    tensors = {name: StoredTensor(name, shape, dtype, size, "a.safetensors") for name, shape, dtype, size in rows}
    return Checkpoint(tensors, "safetensors")


def test_a_header_beside_a_config() -> None:
    report = weigh.params({**LLAMA, "tie_word_embeddings": True})
    rows = [(name, shape, "BF16", 2 * _product(shape)) for name, shape in report.tensors().items()]
    expected = {name: _product(shape) for name, shape in report.tensors().items()}

    def said(*more: tuple[str, tuple[int, ...], str, int], drop: str = "") -> tuple[str, ...]:
        kept = [row for row in rows if row[0] != drop]
        found = StoredWeights.read(checkpoint(*kept, *more), None, expected, ("lm_head.weight",), 2)
        assert found.num_bytes == sum(row[3] for row in (*kept, *more))
        return found.differences

    assert said() == ()
    (buffer,) = said(("model.layers.0.self_attn.rotary_emb.inv_freq", (16,), "F32", 64))
    assert buffer == "stores 1 buffers (16 elements) that are no parameters"
    (tied,) = said(("lm_head.weight", (96, 128), "BF16", 2 * 96 * 128))
    assert tied == "stores lm_head.weight again (12,288 parameters), which is tied"
    (following,) = said(("model.layers.2.eh_proj.weight", (128, 256), "BF16", 2 * 128 * 256))
    assert following == "stores 1 tensors of multi-token prediction (32,768 parameters)"
    (missing,) = said(drop="model.layers.1.mlp.up_proj.weight")
    assert "32,768 parameters fewer in layer 1" in missing
    assert "missing model.layers.*.mlp.up_proj.weight" in missing
    (more,) = said(("model.layers.0.adapter.weight", (3,), "BF16", 6))
    assert more.endswith("in layer 0 than the config implies (unexpected model.layers.*.adapter.weight)")


def test_experts_saved_one_by_one_are_no_difference() -> None:
    expected = {"model.layers.0.mlp.experts.gate_up_proj": 2 * 2 * 4 * 8}
    rows = [(f"layers.0.experts.{e}.w{i}.weight", (4, 8), "BF16", 64) for e in (0, 1) for i in (1, 3)]
    assert StoredWeights.read(checkpoint(*rows), None, expected, (), 1).differences == ()
    assert len(differences((), expected, (), 1)) == 1


def test_many_layers_that_differ_are_said_once() -> None:
    expected = {f"model.layers.{i}.a.weight": 4 for i in range(9)}
    found = differences((), expected, (), 9)
    assert found == ("has 4 parameters fewer in each of 9 layers than the config implies",)
    uneven = {f"model.layers.{i}.a.weight": 4 + i for i in range(9)}
    assert differences((), uneven, (), 9)[-1] == "differs otherwise in 5 more ways"


def test_routers_biases_are_buffers() -> None:
    deepseek = {
        "model_type": "deepseek_v3", "vocab_size": 96, "hidden_size": 64, "intermediate_size": 64,
        "moe_intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "n_routed_experts": 8,
        "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
        "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
        "max_position_embeddings": 64, "dtype": "bfloat16",
    }  # fmt: skip
    shapes = weigh.params(deepseek).tensors()
    rows = [(name, shape, "BF16", 2 * _product(shape)) for name, shape in shapes.items()]
    bias = ("model.layers.1.mlp.gate.e_score_correction_bias", (8,), "F32", 32)
    found = weigh.params(Source("tiny", deepseek, "a test", checkpoint=checkpoint(*rows, bias))).stored
    assert found is not None
    assert found.differences == ("stores 1 buffers (8 elements) that are no parameters",)


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def test_as_printed() -> None:
    config = {**LLAMA, "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}
    report = weigh.params(config)
    text = str(report)
    assert "KiB as stored" in text.splitlines()[0]
    assert "4-bit AWQ, groups of 128" in text
    assert "by_dtype" in report.as_dict()["stored"]
    by_dtype = report.text(by="dtype")
    assert "327,680 parameters" in by_dtype
    assert "mlp" not in by_dtype


def test_an_adapters_parameters_alone_are_trainable() -> None:
    plain = weigh.params(LLAMA)
    assert plain.trainable == plain.total
    adapted = weigh.params(LLAMA, lora="4:q_proj,down_proj")
    added = 2 * 4 * (128 + 128) + 2 * 4 * (256 + 128)
    assert adapted.trainable == added
    assert adapted.total == plain.total + added
    assert f"{added:,} of them trainable" in str(adapted)
    peft = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "down_proj"]}
    assert weigh.params(Source("an adapter", LLAMA, "a test", adapter=peft)).trainable == added


@pytest.mark.parametrize(
    ("more", "adds"),
    [
        ({"use_dora": True}, lambda c: c["num_hidden_layers"] * c["hidden_size"]),
        ({"modules_to_save": ["lm_head"]}, lambda c: c["vocab_size"] * c["hidden_size"]),
        ({"rank_pattern": {"layers.1.self_attn.q_proj": 7}}, lambda c: 3 * 2 * c["hidden_size"]),
        (
            {"target_modules": r".*\.0\.self_attn\.q_proj"},
            lambda c: 8 * c["hidden_size"] * (1 - c["num_hidden_layers"]),
        ),
    ],
)
def test_an_adapter_s_lengths_and_whole_modules_are_counted(more: dict[str, Any], adds: Any) -> None:
    peft = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}
    plain, rich = (weigh.params(Source("an adapter", LLAMA, "a test", adapter=one)) for one in (peft, peft | more))
    assert rich.trainable - plain.trainable == adds(LLAMA)


@pytest.mark.parametrize(
    "adapter",
    [
        {"peft_type": "XLORA"},
        {"peft_type": "IA3"},
        {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "layer_replication": [[0, 2]]},
        {"peft_type": "LORA", "target_modules": ["q_proj"]},
    ],
)
def test_other_adapters_are_refused(adapter: dict[str, Any]) -> None:
    with pytest.raises((InputError, NotModelledError), match="adapter"):
        weigh.params(Source("an adapter", LLAMA, "a test", adapter=adapter))
