import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import weigh
from weigh.errors import InputError
from weigh.sources.files import parse_config, read_config
from weigh.sources.literature import parse_literal, translate
from weigh.sources.locate import locate

ARTICLE = """
GPT_CONFIG_124M = {
    "vocab_size": 50257,    # Vocabulary size
    "context_length": 1024, # Context length
    "emb_dim": 768,         # Embedding dimension
    "n_heads": 12,          # Number of attention heads
    "n_layers": 12,         # Number of layers
    "drop_rate": 0.1,       # Dropout rate
    "qkv_bias": False       # Query-Key-Value bias
}
"""
LARGE = {**parse_literal(ARTICLE), "emb_dim": 1600, "n_layers": 48, "n_heads": 25}
LLAMA2 = """LLAMA2_CONFIG_7B = {
    "vocab_size": 32000, "context_length": 4096, "emb_dim": 4096, "n_heads": 32, "n_layers": 32,
    "hidden_dim": 11008,
    "dtype": torch.bfloat16,
}"""
LLAMA3 = """{"vocab_size": 128_256, "context_length": 8192, "emb_dim": 4096, "n_heads": 32, "n_layers": 32,
    "hidden_dim": 14_336, "n_kv_groups": 8, "rope_base": 500_000.0, "rope_freq": None, "dtype": torch.bfloat16}"""


def test_the_dict_of_a_gpt_as_it_stands() -> None:
    report = weigh.params(parse_config(ARTICLE))
    assert report.total == 163_009_536
    assert report.literature_tally == 123_551_232
    assert weigh.params(LARGE).total == 1_637_792_000
    assert weigh.params(json.dumps(LARGE)).total == 1_637_792_000


def test_the_dict_of_a_llama_as_it_stands() -> None:
    report = weigh.params(parse_config(LLAMA2))
    assert report.total == 6_738_415_616
    assert report.dtype.name == "bf16"
    assert weigh.params(parse_config(LLAMA3)).total == 8_030_261_248


def test_a_tied_variant_keeps_its_query_bias() -> None:
    config = translate({**LARGE, "qkv_bias": True})
    assert config["qkv_bias"] is True
    assert config["tie_word_embeddings"] is False


def test_dropout_has_the_rate_of_the_dict() -> None:
    assert translate(parse_literal(ARTICLE))["attn_pdrop"] == 0.1


def test_other_configs_are_left_alone() -> None:
    config = {"model_type": "gpt2", "n_embd": 8}
    assert translate(config) is config


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').getcwd()",
        "{'a': open('x')}",
        "[x for x in (1, 2)]",
        "lambda: 1",
        "{'a': other.float32}",
        "a = 1; b = 2",
        "f'{1}'",
        "-" * 70_000,
        "(" * 300,
        "{'a': " + "-" * 60_000 + "1}",
    ],
)
def test_nothing_is_executed(text: str) -> None:
    assert parse_literal(text) is None


def test_a_folder_gives_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    found = locate(str(folder))
    assert found is not None
    assert found.name == "my-model"
    assert read_config(folder / "config.json").name == "my-model"


def test_a_byte_order_mark_is_no_harm(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_bytes(b'\xef\xbb\xbf{"model_type": "gpt2"}')
    assert read_config(tmp_path / "c.json").config == {"model_type": "gpt2"}


def test_revisions_depend_on_content_only() -> None:
    one, two = parse_config('{"model_type": "x", "a": 1}'), parse_config('{"a": 1, "model_type": "x"}', "elsewhere")
    assert one.revision == two.revision != parse_config('{"model_type": "x", "a": 2}').revision


@given(st.text())
def test_any_text_is_a_config_or_one_clear_error(text: str) -> None:
    with contextlib.suppress(InputError):
        assert isinstance(parse_config(text).config, dict)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda x: st.lists(x) | st.dictionaries(st.text(), x),
)


@given(
    st.dictionaries(
        st.sampled_from(["model_type", "n_embd", "n_head", "n_layer", "vocab_size", "emb_dim"]), json_values
    )
)
def test_any_config_is_a_model_or_one_clear_error(config: dict[str, object]) -> None:
    with contextlib.suppress(InputError):
        assert weigh.params(config).total > 0
