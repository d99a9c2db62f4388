"""Every pipeline stage of a job, without running every micro-batch of every stage.

What a stage adds for one more micro-batch in flight is what the one before added: the tensors that its forward pass
leaves. So stages with alike layers are run once, with two micro-batches in flight and one more after the first has
gone back, and the others' peaks follow. Ranks of one stage differ by which share of the states is theirs, a few KB.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from weigh.errors import NotModelledError
from weigh.recipes.loop import StagePeak
from weigh.recipes.trained import run
from weigh.recipes.training import Training
from weigh.records import replace
from weigh.runtimes.mcore.config import MegatronConfig
from weigh.runtimes.mcore.schedules import Action, chunks_of, in_flight, schedule
from weigh.runtimes.megatron import Megatron, layout_of
from weigh.trace.events import BACKWARD, FORWARD
from weigh.trace.peak import phase_peaks

ROUNDS = 4
"""Groups of micro-batches that are run where stages are virtual: no more than two of them are in flight."""


class _Steady(Megatron):
    """A step with so many micro-batches in flight, on whichever stage."""

    def __init__(self, waiting: int) -> None:
        self.waiting = waiting

    def actions(self, recipe: Training) -> Iterator[Action]:
        return schedule(self.waiting, 0, recipe.accumulation)


def stage_peaks(config: Mapping[str, Any], recipe: Training, where: str = "config") -> tuple[StagePeak, ...]:
    """The peak of a steady step on every pipeline stage.

    Raises:
        NotModelledError: Megatron-FSDP, which has no stages here.
    """
    if recipe.shard == "megatron_fsdp":
        raise NotModelledError("stages of Megatron-FSDP", where="shard")
    shape, stages = MegatronConfig.read(config, where), recipe.pipeline
    each = recipe.mesh.world // stages
    chunks = chunks_of(recipe)
    waiting = [in_flight(stages, stage, recipe.accumulation, chunks) for stage in range(stages)]
    alike: dict[Any, tuple[int, int]] = {}
    found = []
    for stage, kind in enumerate(_kinds(shape, recipe)):
        here = replace(recipe, rank=stage * each, warm=True, steps=1)
        if chunks > 1:
            passes = min(recipe.accumulation, ROUNDS * (recipe.virtual_pipeline_group or stages))
            peak = _peaks(config, replace(here, warm=False, steps=2, accumulation=passes), where, Megatron())[0]
        elif recipe.accumulation < 4 or recipe.defer_embedding_wgrad is not None:
            peak = _peaks(config, replace(here, warm=False, steps=2), where, Megatron())[0]
        else:
            least = min(waiting[stage], 2)
            if (kind, least) not in alike:
                small = replace(here, accumulation=least + 1)
                alike[kind, least] = _peaks(config, small, where, _Steady(least))
            peak, more = alike[kind, least]
            peak += (waiting[stage] - least) * more
        found.append(StagePeak(stage, stage * each, waiting[stage], peak))
    return tuple(found)


def _kinds(shape: MegatronConfig, recipe: Training) -> Iterator[tuple[Any, ...]]:
    """What each stage has, in letters, and which of its layers have experts."""
    start = 0
    for letters in layout_of(shape, recipe)[: recipe.pipeline]:
        layers = range(start, start + letters.count("t"))
        start = layers.stop
        yield letters, tuple(map(shape.is_expert_layer, layers))


def _peaks(config: Mapping[str, Any], recipe: Training, where: str, loop: Megatron) -> tuple[int, int]:
    """The peak of the last step, and what the second forward pass in it leaves."""
    phases = phase_peaks(run(config, recipe, where, loop=loop).trace, rounded=True)
    last = [p for p in phases if p.mark.round == recipe.steps - 1 and p.mark.phase in (FORWARD, BACKWARD)]
    kept = [int(p.after) for p in last if p.mark.phase == FORWARD][:2]  # type: ignore[arg-type]
    return max(int(p.peak) for p in last), kept[-1] - kept[0]  # type: ignore[arg-type]
