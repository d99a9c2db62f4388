import json
from pathlib import Path

import pytest

from weigh.errors import NotModelledError, UnknownNameError, UsageError
from weigh.trace.allocator_settings import WITHOUT_EFFECT, AllocatorSettings

parse = AllocatorSettings.parse


def test_nothing_said_is_the_default() -> None:
    assert parse("") == parse(" ") == parse("backend:native") == AllocatorSettings()


def test_every_option_is_read() -> None:
    text = """max_split_size_mb:40, max_non_split_rounding_mb: 30, garbage_collection_threshold:0.5,
        roundup_power2_divisions:8, expandable_segments:True, large_segment_size_mb:24,
        per_process_memory_fraction:0.75, pinned_use_background_threads:True,"""
    assert parse(text) == AllocatorSettings(
        expandable_segments=True,
        max_split_size_mb=40,
        max_non_split_rounding_mb=30,
        large_segment_size_mb=24,
        roundup_power2_divisions=(8,) * 16,
        garbage_collection_threshold=0.5,
        per_process_memory_fraction=0.75,
    )


def test_options_without_effect_are_accepted() -> None:
    for name in WITHOUT_EFFECT:
        assert parse(f"{name}:True") == AllocatorSettings()


def test_divisions_by_interval() -> None:
    """PyTorch's own example, c10/test/core/AllocatorConfig_test.cpp: up to 64 MiB 8, 128: 2, ..., above 1 GiB 1."""
    divisions = parse("roundup_power2_divisions:[64:8,128:2,256:4,512:2,1024:4,>:1]").roundup_power2_divisions
    assert divisions == (8,) * 7 + (2, 4, 2, 4) + (1,) * 5
    assert parse("roundup_power2_divisions:[]").roundup_power2_divisions == (0,) * 16
    assert parse("roundup_power2_divisions:[2:4,8:2,]").roundup_power2_divisions == (4, 4, 0, 2) + (0,) * 12
    assert parse("roundup_power2_divisions:[1048576:2]").roundup_power2_divisions == (2,) * 16


TEXTS = json.loads((Path(__file__).parents[1] / "data" / "allocator_settings.json").read_text())
"""Held against PyTorch's own reader in tests/torch/test_allocator_settings.py."""

STRICTER = """
max_split_size_mb:-30
max_split_size_mb:20.5
max_split_size_mb:20 expandable_segments:True
expandable_segments:1
per_process_memory_fraction:1.5
roundup_power2_divisions:64:8
[:]
""".split("\n")[1:-1]


@pytest.mark.parametrize("text", TEXTS["accepted"])
def test_what_pytorch_accepts_is_accepted(text: str) -> None:
    assert isinstance(parse(text), AllocatorSettings)


@pytest.mark.parametrize("text", [*TEXTS["refused"], *STRICTER])
def test_what_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert "PYTORCH_CUDA_ALLOC_CONF" in str(caught.value)


def test_an_unknown_option_is_named_with_the_one_that_was_meant() -> None:
    with pytest.raises(UnknownNameError, match="max_split_size'"):
        parse("max_split_size:128")
    with pytest.raises(UnknownNameError):
        parse("backend:mine")
    with pytest.raises(NotModelledError):
        parse("backend:cudaMallocAsync")
    with pytest.raises(UsageError):
        AllocatorSettings(roundup_power2_divisions=(4,))
