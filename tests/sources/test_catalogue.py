import dataclasses

import pytest

import weigh
from weigh.errors import UnknownNameError
from weigh.sources.catalogue import entries, find

PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "gpt3-175b": 174_604_259_328,
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
}


def test_every_bundled_model_has_a_published_count() -> None:
    assert {entry.name for entry in entries()} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    assert weigh.params(name).total == PUBLISHED[name]


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
