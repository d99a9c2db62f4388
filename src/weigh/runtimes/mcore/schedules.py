"""Pipeline schedules: which layers a stage has, and in which order a rank runs its micro-batches forward and back.

Mirrors `megatron/core/pipeline_parallel/schedules.py` and `transformer/pipeline_parallel_layer_layout.py` (0.17): 1F1B,
and interleaved 1F1B over virtual stages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from weigh.errors import UsageError
from weigh.recipes.training import Training

LAYERS = "EtmL"
"""In a layout: the embedding, a layer, one that predicts further tokens, the loss."""


def stages_of(layout: str) -> list[str]:
    """The layers of each stage (`--pipeline-model-parallel-layout`), a letter each.

    >>> stages_of("Et*2|(tt|)*2tL")
    ['Ett', 'tt', 'tt', 'tL']
    """
    text = layout.replace(",", "").replace(" ", "")
    text = re.sub(r"\(([^)]+)\)\*(\d+)", lambda found: found[1] * int(found[2]), text)
    text = re.sub(r"(.)\*(\d+)", lambda found: found[1] * int(found[2]), text)
    if strange := sorted(set(text) - {*LAYERS, "|"}):
        hint = "E is the embedding, t a layer, m one that predicts further tokens, L the loss; | ends a stage."
        raise UsageError(f"{layout!r} has {' '.join(strange)}", where="pipeline_layout", hint=hint)
    return text.split("|")


def chunks_of(recipe: Training) -> int:
    """Chunks of layers on each rank: as many as are stated, or as a layout has for each stage (`arguments.py`)."""
    if recipe.pipeline_layout is None or recipe.virtual_pipeline > 1:
        return recipe.virtual_pipeline
    return max(len(stages_of(recipe.pipeline_layout)) // recipe.pipeline, 1)


class Action(NamedTuple):
    """One pass of one micro-batch through one of the rank's chunks."""

    forward: bool
    chunk: int
    micro_batch: int


def schedule(
    stages: int, rank: int, micro_batches: int, chunks: int = 1, group: int | None = None, more: int = 0
) -> Iterator[Action]:
    """What stage `rank` of `stages` does in a step, in order.

    `group` micro-batches go through one chunk in turn; with virtual stages `more` passes are run ahead.

    >>> ["FB"[not a.forward] for a in schedule(4, 1, 4)]
    ['F', 'F', 'F', 'B', 'F', 'B', 'B', 'B']
    """
    table = _table(group or stages, micro_batches, chunks)
    ahead = stages - rank - 1
    warmup = ahead if chunks == 1 else 2 * ahead + (chunks - 1) * (group or stages) + more
    warmup = min(warmup, len(table))
    back = [(micro_batch, chunks - 1 - chunk) for micro_batch, chunk in table]
    for number in range(len(table) + warmup):
        if number < len(table):
            yield Action(True, table[number][1], table[number][0])
        if number >= warmup:
            micro_batch, chunk = back[number - warmup]
            yield Action(False, chunk, micro_batch)


def _table(group_size: int, micro_batches: int, chunks: int) -> list[tuple[int, int]]:
    """`get_schedule_table`: groups of so many micro-batches go through one chunk after the other."""
    if chunks == 1:
        return [(number, 0) for number in range(micro_batches)]
    found = []
    for start in range(0, micro_batches, group_size):
        group = range(start, min(start + group_size, micro_batches))
        found += [(number, chunk) for chunk in range(chunks) for number in group]
    return found


def in_flight(stages: int, rank: int, micro_batches: int, chunks: int = 1, more: int = 0) -> int:
    """How many passes forward wait for theirs back at most.

    >>> [in_flight(4, rank, 8) for rank in range(4)]
    [4, 3, 2, 1]
    """
    most = now = 0
    for action in schedule(stages, rank, micro_batches, chunks, more=more):
        now += 1 if action.forward else -1
        most = max(most, now)
    return most
