"""When a training does not fit: the cheapest changes that make it fit, found by running it with each of them.

Nothing is estimated: a change, or several together, is a recipe that is run. They are tried in the order of what they
ask of a user (`weigh.plan.changes`). Sets that cannot fit are not run: what an update takes is the same whatever is
done about activations, and a change of the update alone does nothing for the passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from weigh.errors import WeighError
from weigh.plan.changes import PASSES, UPDATE, Change, changes, settings_of
from weigh.recipes.training import Training
from weigh.records import dataclass

WANTED = 3
"""Ways that are shown."""
MOST_RUNS = 48
"""Runs after which the search ends, ..."""
MOST_EVENTS = 150_000
"""... or events in them: where every block has to be run, a run takes long."""
TOGETHER = 3
"""Changes that are made together at most."""

__all__ = ["Change", "Outcome", "Plan", "Remedy", "search"]


class Outcome(NamedTuple):
    """What a run took."""

    peak: int
    """Bytes."""
    update: int
    """Bytes at the peak of the optimizer's steps, without the inputs."""
    passes: int
    """Bytes at the peak of all else."""
    flops_per_token: float
    """Floating-point operations of a step for each token of it."""
    events: int = 0
    """How many the run had."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """Changes, and what a run with them takes."""

    changes: tuple[Change, ...]
    """What is changed."""
    settings: Mapping[str, Any]
    """All settings that it takes."""
    grown: float
    """How many times as many sequences a step has, over all devices."""
    outcome: Outcome
    """With the changes."""
    before: Outcome
    """Without them."""

    @property
    def saving(self) -> int:
        """Bytes less at the peak."""
        return self.before.peak - self.outcome.peak

    @property
    def more_arithmetic(self) -> float:
        """The share of arithmetic for each token that comes on top; negative where some is saved."""
        return self.outcome.flops_per_token / self.before.flops_per_token - 1 if self.before.flops_per_token else 0.0

    @property
    def price(self) -> str:
        """What it asks for, in words."""
        said = [change.price for change in self.changes]
        if self.grown != 1:
            said.append(f"a step has {self.grown:g} times as many sequences")
        if abs(self.more_arithmetic) >= 0.005:
            said.append(f"{self.more_arithmetic:+.0%} arithmetic a token")
        return "; ".join(dict.fromkeys(said))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "changes": [change.what for change in self.changes],
            "settings": dict(self.settings),
            "price": self.price,
            "peak_bytes": self.outcome.peak,
            "saving_bytes": self.saving,
            "more_arithmetic": round(self.more_arithmetic, 4),
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """What the search found."""

    remedies: tuple[Remedy, ...]
    """Ways to make it fit, the cheapest first; none where nothing that was tried was enough."""
    nearest: Remedy | None
    """What took the least of all that was tried."""
    runs: int
    """How many recipes were run."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "remedies": [remedy.as_dict() for remedy in self.remedies],
            "nearest": self.nearest and self.nearest.as_dict(),
            "runs": self.runs,
        }


class _Tries:
    """Sets of changes that were run."""

    def __init__(self, recipe: Training, before: Outcome, run: Callable[[Mapping[str, Any]], Outcome]) -> None:
        self.recipe, self.before, self.run = recipe, before, run
        self.known: dict[frozenset[Change], Remedy | None] = {}

    def remedy(self, chosen: tuple[Change, ...]) -> Remedy | None:
        """The run with these changes; None where they cannot be made."""
        key = frozenset(chosen)
        if key not in self.known:
            settings, grown = settings_of(self.recipe, chosen)
            try:
                self.known[key] = Remedy(chosen, settings, grown, self.run(settings), self.before)
            except WeighError:
                self.known[key] = None
        return self.known[key]

    @property
    def enough(self) -> bool:
        """Whether the search has gone on long enough."""
        events = sum(remedy.outcome.events for remedy in self.known.values() if remedy is not None)
        return len(self.known) >= MOST_RUNS or events >= MOST_EVENTS

    def least(self, chosen: tuple[Change, ...]) -> int | None:
        """What these changes take at least, as runs with fewer of them say; None where they cannot be made."""
        deciding = tuple(change for change in chosen if change.of != PASSES)
        update, found = self.before.update, self.remedy(deciding) if deciding else None
        if deciding:
            if found is None:
                return None
            update = found.outcome.update
        others = frozenset(change for change in chosen if change.of != UPDATE)
        known = self.known.get(others)
        return max(update, 0 if known is None or len(others) == len(chosen) else known.outcome.passes)


def search(
    recipe: Training, before: Outcome, run: Callable[[Mapping[str, Any]], Outcome], fits: Callable[[int], bool]
) -> Plan:
    """The cheapest ways to make a training fit.

    `run` runs the recipe with some settings changed; where it raises a `WeighError`, the changes cannot be made here.
    `fits` says whether a peak of so many bytes does.
    """
    tries = _Tries(recipe, before, run)
    found: list[Remedy] = []
    for chosen in _by_price(changes(recipe)):
        if tries.enough or len(found) == WANTED:
            break
        if any(_is_enough(remedy.changes, chosen) for remedy in found):
            continue
        least = tries.least(chosen)
        if least is None or not fits(least):
            continue
        remedy = tries.remedy(chosen)
        if remedy is not None and fits(remedy.outcome.peak):
            found.append(remedy)
    made = [remedy for remedy in tries.known.values() if remedy is not None]
    return Plan(tuple(found), min(made, key=lambda one: one.outcome.peak, default=None), len(tries.known))


def _is_enough(less: tuple[Change, ...], more: tuple[Change, ...]) -> bool:
    """Whether `more` only adds to `less`: other changes, or more of the same."""
    return all(any(own.kind == other.kind and own.cost <= other.cost for other in more) for own in less)


def _by_price(known: Sequence[Change]) -> Iterator[tuple[Change, ...]]:
    """Sets of changes of different kinds, the cheaper ones first."""
    sets = [
        chosen
        for number in range(1, TOGETHER + 1)
        for chosen in combinations(known, number)
        if len({change.kind for change in chosen}) == number
    ]
    yield from sorted(sets, key=lambda chosen: sum(change.cost for change in chosen))
