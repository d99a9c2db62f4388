"""The book's training: blocks that stand for others, and what its changes save."""

from itertools import pairwise
from typing import Any

import pytest

from weigh.recipes.trained import run
from weigh.recipes.training import Training
from weigh.runtimes import get
from weigh.trace.peak import phase_peaks

GPT: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": 130,
    "n_embd": 48,
    "n_layer": 6,
    "n_head": 4,
    "n_positions": 64,
}
BOOK = get("llms_from_scratch").loop
CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"mask_buffers": True, "native_classes": False}, "eager"),
    ({"mask_buffers": False, "native_classes": False}, "eager"),
    ({"mask_buffers": False, "native_classes": True}, "eager"),
    ({"mask_buffers": False, "native_classes": True}, "sdpa"),
]


@pytest.mark.parametrize(("flags", "attention"), CHANGES)
def test_compressed_and_unrolled_runs_have_the_same_peaks(flags: dict[str, Any], attention: str) -> None:
    recipe = Training(batch=2, sequence=32, attention=attention)
    short, long = (run(GPT | flags, recipe, unroll=unroll, loop=BOOK) for unroll in (False, True))
    assert len(short.trace.events) < len(long.trace.events)
    assert [p.peak for p in phase_peaks(short.trace)] == [p.peak for p in phase_peaks(long.trace)]


def test_every_change_of_the_book_saves_memory() -> None:
    peaks = []
    for flags, attention in CHANGES:
        trace = run(GPT | flags, Training(batch=8, sequence=64, attention=attention), loop=BOOK).trace
        peaks.append(max(int(p.peak) for p in phase_peaks(trace)))  # type: ignore[arg-type]
    assert all(before > after for before, after in pairwise(peaks))


def test_gradients_outlive_a_step() -> None:
    trained = run(GPT, Training(batch=1, sequence=8), loop=BOOK)
    size = sum(int(p.numel) * p.count * 4 for p in trained.parameters)  # type: ignore[call-overload]
    assert int(phase_peaks(trained.trace)[-1].after) >= 4 * size  # type: ignore[arg-type]
