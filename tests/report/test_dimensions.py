"""Sizes in the words of a config, of families that are alike in nothing."""

import math
import re
from typing import Any

import pytest

import weigh
from weigh.report.dimensions import sizes_in_words
from weigh.sources.catalogue import find

SAID = {
    ("gpt2", "transformer.wpe.weight"): "n_positions x n_embd",
    ("gpt2", "transformer.h.0.attn.c_attn.weight"): "n_embd x 3 n_embd",
    (
        "mixtral-8x7b",
        "model.layers.0.mlp.experts.gate_up_proj",
    ): "num_local_experts x 2 intermediate_size x hidden_size",
    ("jamba-v0.1", "model.layers.0.mamba.A_log"): "mamba_expand * hidden_size x mamba_d_state",
    (
        "jamba-v0.1",
        "model.layers.0.mamba.x_proj.weight",
    ): "mamba_dt_rank + 2 mamba_d_state x mamba_expand * hidden_size",
    ("deepseek-v3", "model.layers.0.self_attn.q_b_proj.weight"): "num_attention_heads * qk_head_dim x q_lora_rank",
    ("deepseek-v3", "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"): (
        "kv_lora_rank + qk_rope_head_dim x hidden_size"
    ),
    ("deepseek-v3", "model.layers.0.self_attn.kv_b_proj.weight"): (
        "num_attention_heads * (v_head_dim + qk_nope_head_dim) x kv_lora_rank"
    ),
    ("deepseek-v3", "model.layers.3.mlp.gate.weight"): "n_routed_experts x hidden_size",
    ("falcon-40b", "transformer.h.0.self_attention.query_key_value.weight"): (
        "(num_attention_heads + 2 num_kv_heads) * head_dim x hidden_size"
    ),
    ("t5-11b", "encoder.block.0.layer.0.SelfAttention.q.weight"): "num_heads * d_kv x d_model",
    ("gpt-oss-20b", "model.layers.0.self_attn.sinks"): "num_attention_heads",
    (
        "gpt-oss-20b",
        "model.layers.0.mlp.experts.gate_up_proj",
    ): "num_local_experts x hidden_size x 2 intermediate_size",
    (
        "gpt-oss-20b",
        "model.layers.0.mlp.experts.down_proj",
    ): "num_local_experts x intermediate_size x hidden_size",
    ("gpt-oss-20b", "model.layers.0.mlp.experts.down_proj_bias"): "num_local_experts x hidden_size",
    ("mamba-130m", "backbone.layers.0.mixer.in_proj.weight"): "2 expand * hidden_size x hidden_size",
    (
        "mamba-130m",
        "backbone.layers.0.mixer.x_proj.weight",
    ): "time_step_rank + 2 state_size x expand * hidden_size",
    ("llama-3-8b", "model.layers.0.self_attn.o_proj.weight"): "hidden_size x num_attention_heads * head_dim",
    ("t5-small", "encoder.block.0.layer.0.SelfAttention.q.weight"): "num_heads * d_kv x d_model",
}


@pytest.mark.parametrize(("model", "tensor"), SAID)
def test_in_words(model: str, tensor: str) -> None:
    shape = weigh.params(model).tensors()[tensor]
    assert sizes_in_words(shape, tensor, find(model).config) == SAID[model, tensor]


@pytest.mark.parametrize("model", ["gpt2", "deepseek-v3", "jamba-v0.1", "t5-small", "bloom-560m", "mamba-130m"])
def test_every_expression_has_the_value_of_its_size(model: str) -> None:
    config: dict[str, Any] = dict(find(model).config)
    heads = config.get("num_attention_heads") or 1
    config.setdefault("head_dim", (config.get("hidden_size") or 0) // heads)
    for row in weigh.params(model).rows:
        said = sizes_in_words(row.shape, row.names[0], find(model).config)
        product = math.prod(eval(_python(part), {}, config) for part in said.split(" x "))
        assert product == row.each, (row.names[0], said)


def _python(words: str) -> str:
    """ "2 hidden_size" is Python with a sign between."""
    return re.sub(r"(\d) ([a-z])", r"\1 * \2", words)


def test_what_nothing_explains_stays_a_number() -> None:
    assert sizes_in_words((7919, 1), "model.norm.weight", {"hidden_size": 64, "vocab_size": 7919}) == "7919 x 1"
    assert sizes_in_words((9,), "a", {}) == "9"
