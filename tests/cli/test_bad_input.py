"""Input that cannot be used: one clear message (what, where, what to do), exit 3, and never a traceback."""

import json
from pathlib import Path

import pytest

GPT2 = {"model_type": "gpt2", "vocab_size": 100, "n_positions": 16, "n_embd": 64, "n_layer": 2, "n_head": 4}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
DICT = {"vocab_size": 100, "context_length": 16, "emb_dim": 64, "n_heads": 4, "n_layers": 2}


def without(config: dict[str, object], key: str) -> dict[str, object]:
    return {k: v for k, v in config.items() if k != key}


CONFIGS = {
    "missing width": (without(GPT2, "n_embd"), "n_embd: is missing"),
    "missing layers": (without(LLAMA, "num_hidden_layers"), "num_hidden_layers: is missing"),
    "missing key of a literature dict": (without(DICT, "context_length"), "context_length: is missing"),
    "unknown key of a literature dict": ({**DICT, "n_expert": 8}, "n_expert: is not a key"),
    "text for a number": ({**GPT2, "n_embd": "64"}, "n_embd: is '64', not a whole number"),
    "fraction": ({**GPT2, "n_layer": 1.5}, "n_layer: is 1.5, not a whole number"),
    "true for a number": ({**GPT2, "n_layer": True}, "n_layer: is True, not a whole number"),
    "list for a number": ({**LLAMA, "hidden_size": [64]}, "hidden_size: is [64], not a whole number"),
    "heads that do not divide": ({**GPT2, "n_head": 5}, "64 is not a multiple of n_head 5"),
    "llama heads that do not divide": ({**LLAMA, "num_attention_heads": 6}, "64 is not a multiple of"),
    "key heads that do not divide": (
        {**LLAMA, "num_key_value_heads": 3},
        "4 is not a multiple of num_key_value_heads 3",
    ),
    "negative": ({**GPT2, "n_layer": -2}, "n_layer: is -2"),
    "zero": ({**LLAMA, "vocab_size": 0}, "vocab_size: is 0"),
    "absurd size": ({**GPT2, "n_embd": 2**50}, "No model has that many"),
    "absurdly many layers": ({**GPT2, "n_layer": 10**9}, "n_layer: is 1000000000"),
    "unknown model_type": ({**GPT2, "model_type": "gpt5"}, "unknown model_type 'gpt5'. Did you mean gpt"),
    "no model_type": (without(GPT2, "model_type"), "has no model_type. Add one of: "),
    "no such family": ({**GPT2, "model_type": "nosuchfamily"}, "counts a model by the header of its weights alone"),
    "model_type that is a list": ({**GPT2, "model_type": ["gpt2"]}, "unknown model_type"),
    "dtype that is none": ({**GPT2, "dtype": "bf17"}, "unknown dtype 'bf17'. Did you mean bf16?"),
}
TEXTS = {
    "a list": ("[1, 2]", "is a list, not a config"),
    "a number": ("12", "is a number, not a config"),
    "not JSON": ("model_type: gpt2", "is not JSON"),
    "cut off": ('{"model_type": "gpt2", ', "is not JSON"),
    "empty": ("", "is empty"),
    "a key twice": ('{"model_type": "gpt2", "model_type": "llama"}', "has 'model_type' twice"),
    "no number": ('{"model_type": "gpt2", "n_layer": NaN}', "NaN is no JSON number"),
    "a number of 5000 digits": ('{"model_type": "gpt2", "n_layer": ' + "1" * 5000 + "}", "too many digits"),
    "nested lists": ("[" * 4_000_000, "is nested too deep"),
    "nested objects": ('{"a":' * 1_000_000, "is nested too deep"),
    "nested literal": ("{'a': " + "(" * 5000, "is not JSON"),
    "code": ('__import__("os").system("touch executed")', "is not JSON"),
    "code in a dict": ('{"emb_dim": __import__("os").system("touch executed")}', "is not JSON"),
}


def check(result, message: str) -> None:  # type: ignore[no-untyped-def]
    assert result.returncode == 3, result.stderr
    assert result.stdout == ""
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("weigh: ")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_cannot_be(weigh, tmp_path: Path, name: str) -> None:  # type: ignore[no-untyped-def]
    config, message = CONFIGS[name]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    check(weigh("params", path), message)


@pytest.mark.parametrize("name", TEXTS)
def test_a_file_that_is_no_config(weigh, tmp_path: Path, monkeypatch, name: str) -> None:  # type: ignore[no-untyped-def]
    text, message = TEXTS[name]
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text(text)
    check(weigh("train", "config.json"), message)
    assert not Path("executed").exists()


def test_a_hundred_megabytes_of_nesting(weigh, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        for _ in range(100):
            file.write(b"[" * 1_000_000)
    check(weigh("params", path), "is 100 MB; a config has at most 8 MiB")


@pytest.mark.parametrize("command", ["params", "train", "generate"])
def test_an_unknown_model(weigh, command: str) -> None:  # type: ignore[no-untyped-def]
    check(weigh(command, "gpt2-midium"), "unknown model 'gpt2-midium'. Did you mean gpt2-medium")


def test_a_folder_without_a_config(weigh, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    check(weigh("params", tmp_path), "the folder has no config.json")


def test_a_path_that_leads_nowhere(weigh, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    check(weigh("params", tmp_path / "config.json"), "cannot be read: No such file")


def test_weights_instead_of_a_config(weigh, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "model.json").write_bytes(b"\xff\xfe\x00\x80" * 100)
    check(weigh("params", tmp_path / "model.json"), "is not text")


def test_something_without_an_end(weigh) -> None:  # type: ignore[no-untyped-def]
    check(weigh("params", "/dev/zero"), "does not end")


def test_nonsense_on_standard_input(weigh) -> None:  # type: ignore[no-untyped-def]
    check(weigh("params", "-", stdin="nonsense"), "standard input: is not JSON")


def test_rows_that_are_none(weigh, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    check(weigh("validate", tmp_path / "rows.jsonl"), "cannot be read")


def test_a_picture_that_cannot_be_written(weigh, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    check(weigh("train", "gpt2", "--svg", tmp_path / "no" / "x.svg"), "cannot be written")
