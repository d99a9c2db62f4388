"""Two models side by side."""

import json
from pathlib import Path

import jsonschema

import weigh
from weigh.sources.checkpoint import Checkpoint, StoredTensor
from weigh.sources.source import Source

SCHEMAS = Path(__file__).parents[2] / "docs" / "schema"

GPT2 = {"model_type": "gpt2", "vocab_size": 100, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2}
LLAMA = {
    "model_type": "llama", "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 64, "max_position_embeddings": 16,
}  # fmt: skip


def test_figures_and_keys() -> None:
    wider = {**LLAMA, "num_key_value_heads": 2, "bos_token_id": 7}
    found = weigh.compare(LLAMA, wider)
    attention = 2 * (2 * 32 * 32 + 2 * 16 * 32)
    assert found.figures()["attention"] == (attention, attention + 2 * 2 * 16 * 32)
    assert found.figures()["kv_bytes_per_token"] == (2 * 2 * 16 * 4, 2 * 2 * 32 * 4)
    assert found.keys() == {"num_key_value_heads": (1, 2)}
    assert sum(found.figures()["parameters"]) == weigh.params(LLAMA).total + weigh.params(wider).total


def test_components_that_one_lacks_are_none_of_it() -> None:
    figures = weigh.compare(GPT2, LLAMA).figures()
    assert figures["head"] == (0, 3200)
    assert next(iter(figures)) == "parameters"


def test_the_same_model_differs_in_nothing() -> None:
    found = weigh.compare("llama-3-8b", "llama-3-8b")
    assert all(left == right for left, right in found.figures().values())
    assert "Their configs agree." in str(found)


def test_as_printed() -> None:
    text = str(weigh.compare(LLAMA, {**LLAMA, "num_key_value_heads": 2}, "bf16"))
    assert "  attention                     6,144      8,192     +33.3 %" in text
    assert "  kv bytes per token              128        256    +100.0 %" in text
    assert text.endswith("Config keys that differ\n  num_key_value_heads  1  2")


def test_a_header_alone_is_compared_too() -> None:
    weight = StoredTensor("blocks.0.mlp.weight", (4, 8), "BF16", 64, "a.safetensors")
    bare = Source("bare", {}, "a test", checkpoint=Checkpoint({weight.name: weight}, "safetensors"))
    found = weigh.compare(bare, LLAMA)
    assert found.figures()["parameters"] == (32, weigh.params(LLAMA).total)
    assert found.figures()["mlp"][0] == 32
    assert found.figures()["kv_bytes_per_token"][0] is None
    jsonschema.validate(found.as_dict(), json.loads((SCHEMAS / "compare.json").read_text()))
    jsonschema.validate(weigh.params(bare).as_dict(), json.loads((SCHEMAS / "params.json").read_text()))
