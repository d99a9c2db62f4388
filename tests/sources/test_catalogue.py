import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import weigh
from weigh.errors import InputError, UnknownNameError
from weigh.sources.catalogue import entries, find

LINES = (Path(__file__).parents[1] / "data" / "published.jsonl").read_text(encoding="utf-8").splitlines()
ROWS: dict[str, dict[str, Any]] = {row["name"]: row for row in map(json.loads, LINES)}
"""Built with transformers, too, and found to have the published count."""
ROW_NAMES = {"llama-7b": "llama-1-7b", "llama-33b": "llama-1-33b"}
PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "gpt3-175b": 174_604_259_328,
    "bert-base-uncased": 109_514_298,
    "bert-large-uncased": 335_174_458,
    "roberta-base": 124_697_433,
    "roberta-large": 355_412_057,
    "distilbert-base-uncased": 66_985_530,
    "whisper-tiny": 37_760_640,
    "whisper-base": 72_593_920,
    "whisper-small": 241_734_912,
    "whisper-medium": 763_857_920,
    "whisper-large-v3": 1_543_490_560,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "tinyllama-1.1b": 1_100_048_384,
    "opt-175b": 174_604_468_224,  # "175B"
    "palm-540b": 540_356_474_880,  # "540.35" billion in table 1 of the paper
    "bloom-176b": 176_247_271_424,
    # Published counts that are not those of the model: transformers builds these.
    "deepseek-v3": 671_026_404_352,  # 671,026,419,200 with its routers' biases, which are buffers
    "opt-66b": 65_719_701_504,
    # transformers 5 ties Flan-T5's output layer, which its files have besides (76,961,152 and so on).
    "flan-t5-small": 76_961_152 - 32_128 * 512,
    "flan-t5-base": 247_577_856 - 32_128 * 768,
    "flan-t5-large": 783_150_080 - 32_128 * 1024,
    "flan-t5-xl": 2_849_757_184 - 32_128 * 2048,
    "flan-t5-xxl": 11_135_332_352 - 32_128 * 4096,
}


def published(name: str) -> int:
    return PUBLISHED[name] if name in PUBLISHED else int(ROWS[ROW_NAMES.get(name, name)]["parameters"])


@pytest.mark.parametrize("name", [entry.name for entry in entries()])
def test_parameters_are_the_published_ones(name: str) -> None:
    entry = next(entry for entry in entries() if entry.name == name)
    assert weigh.params(name).total == entry.parameters == published(name)


def test_there_are_many() -> None:
    assert len(entries()) >= 100
    assert set(PUBLISHED) <= {entry.name for entry in entries()}
    assert len({entry.config["model_type"] for entry in entries()}) >= 25


@pytest.mark.parametrize("name", ["gpt-4", "GPT-4o-mini", "o1", "openai/gpt-5", "Gemini 2.5 Pro", "claude-opus-4"])
def test_closed_models_are_not_published(name: str) -> None:
    with pytest.raises(InputError, match=r"the sizes of .* are not published\. (OpenAI|Google|Anthropic) has said"):
        find(name)


@pytest.mark.parametrize("name", ["gpt-40", "someone/gemini-like-7b", "o13", "claudia"])
def test_others_are_only_unknown(name: str) -> None:
    with pytest.raises(UnknownNameError):
        find(name)


def test_searching() -> None:
    assert [entry.name for entry in entries("OSS openai")] == ["gpt-oss-20b", "gpt-oss-120b"]
    assert {entry.config["model_type"] for entry in entries("mamba")} >= {"mamba"}
    assert entries("no such thing") == []


def test_what_is_stored_of_bundled_quantized_models() -> None:
    stored = weigh.params("gpt-oss-20b").stored
    assert stored is not None
    assert stored.num_bytes == 13_761_264_768  # `total_size` in the index of openai/gpt-oss-20b


def test_revisions_are_those_of_the_configs() -> None:
    for entry in entries():
        computed = dataclasses.replace(entry.as_source(), bundled_revision=None).revision
        assert entry.revision == computed, entry.name


def test_no_name_means_two_models() -> None:
    names = [n.lower() for entry in entries() for n in (entry.name, *entry.aliases)]
    assert len(names) == len(set(names))


def test_every_entry_says_where_its_config_is_published() -> None:
    for entry in entries():
        assert entry.source.startswith("https://") or "arXiv:" in entry.source
        assert entry.config["dtype"] in ("float32", "float16", "bfloat16")


def test_names_are_found_whatever_their_case() -> None:
    assert find(" META-LLAMA/llama-2-7B-hf ").name == "llama-2-7b"


def test_near_misses_are_suggested() -> None:
    with pytest.raises(UnknownNameError) as raised:
        find("lama-2-7b")
    assert raised.value.suggestions[0] == "llama-2-7b"
