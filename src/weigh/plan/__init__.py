"""When a training does not fit: the cheapest changes that make it fit, found by running it with each of them.

Nothing is estimated: a change, or several together, is a recipe that is run. They are tried in the order of what they
ask of a user (`weigh.plan.changes`). Sets that cannot fit are not run: where even the most devices and half the
sequence are too little with the same other changes, fewer devices are not tried; among numbers of devices the fewest
is found by halving.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from weigh.errors import WeighError
from weigh.plan.changes import DEVICES, ONLY_HELPFUL, PASSES, STATES, UPDATE, Change, changes, settings_of
from weigh.recipes.training import Training
from weigh.records import dataclass

WANTED = 3
"""Ways that are shown."""
MOST_EVENTS = 80_000
"""Births and deaths in all runs together after which the search ends: about a second."""
STEADY = {"steps": 1, "warm": True}
"""Settings of a run of one step whose optimizer has its state."""
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
    held: int = 0
    """Bytes that are there before a step's passes: weights, states."""


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
    """What took the least of all that was tried, where nothing was enough."""
    runs: int
    """How many recipes were run."""
    cut_short: bool = False
    """The search ended before everything was looked at."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "remedies": [remedy.as_dict() for remedy in self.remedies],
            "nearest": self.nearest and self.nearest.as_dict(),
            "runs": self.runs,
            "cut_short": self.cut_short,
        }


class _Tries:
    """Sets of changes that were run."""

    def __init__(
        self,
        recipe: Training,
        before: Outcome,
        run: Callable[[Mapping[str, Any]], Outcome],
        fits: Callable[[int], bool],
        known: Sequence[Change],
    ) -> None:
        self.recipe, self.before, self.run, self.fits = recipe, before, run, fits
        self.devices = [change for change in known if change.kind == DEVICES]
        self.helpful = {change.kind: change for change in known if change.kind in ONLY_HELPFUL}
        """The most of each kind that never takes more memory."""
        self.known: dict[frozenset[Change], Remedy | None] = {}
        self.steps: dict[frozenset[Change], Outcome | None] = {}
        """One steady step of each set, which takes half the time."""
        self.enough_devices: dict[frozenset[Change], Change | None] = {}

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

    def steady(self, chosen: tuple[Change, ...]) -> Outcome | None:
        """What one steady step takes with these changes, which is what the run takes at least."""
        key = frozenset(chosen)
        found = self.known.get(key)
        if found is not None:
            return found.outcome
        if key not in self.steps:
            settings, _ = settings_of(self.recipe, chosen)
            try:
                self.steps[key] = self.run({**settings, **STEADY})
            except WeighError:
                self.steps[key] = None
        return self.steps[key]

    def may_fit(self, chosen: tuple[Change, ...]) -> bool:
        """Whether one steady step fits. Where the passes alone are known to be too much, the update does not help."""
        same_passes = self.steps.get(frozenset(change for change in chosen if change.of != UPDATE))
        if same_passes is not None and not self.fits(same_passes.passes):
            return False
        least = self.steady(chosen)
        return least is not None and self.fits(least.peak)

    def fitting(self, chosen: tuple[Change, ...]) -> Remedy | None:
        """The run with these changes, if it fits."""
        remedy = self.remedy(chosen) if self.may_fit(chosen) else None
        return remedy if remedy is not None and self.fits(remedy.outcome.peak) else None

    @property
    def enough(self) -> bool:
        """Whether the search has gone on long enough."""
        whole = [remedy.outcome.events for remedy in self.known.values() if remedy is not None]
        return sum(whole) + sum(step.events for step in self.steps.values() if step is not None) >= MOST_EVENTS

    def hopeless(self, chosen: tuple[Change, ...]) -> bool:
        """That these changes are too few, as runs say that have fewer, or more of what only helps.

        The passes take what they take whatever is done about the update, and the other way round.
        """
        others = tuple(change for change in chosen if change.kind not in ONLY_HELPFUL)
        deciding = tuple(change for change in others if change.of != PASSES)
        if not any(change.kind == DEVICES for change in chosen):
            update = self.steady(deciding) if deciding else self.before
            return update is None or not self.fits(update.update)
        passing = tuple(change for change in others if change.of != UPDATE)
        activations = tuple(change for change in passing if change.kind != STATES)
        if len(activations) < len(passing):  # of the passes it changes only what is held
            best = self.steady((*activations, *self.helpful.values()))
            if best is not None and not self.fits(best.passes - best.held):
                return True
        best = self.steady((*passing, *self.helpful.values()))
        return best is not None and not self.fits(best.passes)

    def nearest(self) -> Remedy | None:
        """The run that takes the least of all that were made."""
        made = {chosen: outcome for chosen, outcome in self.steps.items() if outcome is not None}
        if not made:
            return None
        least = min(made, key=lambda chosen: made[chosen].peak)
        return self.remedy(tuple(sorted(least, key=lambda change: change.cost)))

    def fewest_devices(self, others: tuple[Change, ...]) -> Change | None:
        """The fewest devices on which it fits with other changes; None where the most are too few."""
        key = frozenset(others)
        if key not in self.enough_devices:
            first = bisect_left(self.devices, True, key=lambda change: self.may_fit((*others, change)))
            fitting = (change for change in self.devices[first:] if self.fitting((*others, change)) is not None)
            self.enough_devices[key] = next(fitting, None)
        return self.enough_devices[key]

    def pared(self, remedy: Remedy) -> Remedy:
        """What fits with no more changes than it takes: runs that rule others out make more of them than a set has."""
        chosen = remedy.changes
        for change in sorted(chosen, key=lambda change: -change.cost):
            fewer = tuple(other for other in chosen if other is not change)
            if fewer and self.fitting(fewer) is not None:
                chosen = fewer
        others = tuple(change for change in chosen if change.kind != DEVICES)
        fewest = self.fewest_devices(others) if len(others) < len(chosen) else None
        return self.fitting((*others, fewest)) or remedy if fewest is not None else self.fitting(chosen) or remedy


def search(
    recipe: Training, before: Outcome, run: Callable[[Mapping[str, Any]], Outcome], fits: Callable[[int], bool]
) -> Plan:
    """The cheapest ways to make a training fit.

    `run` runs the recipe with some settings changed; where it raises a `WeighError`, the changes cannot be made here.
    `fits` says whether a peak of so many bytes does.
    """
    known = changes(recipe)
    tries = _Tries(recipe, before, run, fits, known)
    found: list[Remedy] = []
    for chosen in by_price(known):
        if tries.enough or len(found) == WANTED:
            break
        if any(is_enough(remedy.changes, chosen) for remedy in found) or tries.hopeless(chosen):
            continue
        devices = next((change for change in chosen if change.kind == DEVICES), None)
        if devices is not None and tries.fewest_devices(tuple(c for c in chosen if c is not devices)) is not devices:
            continue
        remedy = tries.fitting(chosen)
        if remedy is not None:
            found.append(remedy)
    nearest = None if found else tries.nearest()
    if nearest is not None and fits(nearest.outcome.peak):
        found.append(tries.pared(nearest))
    runs = tries.steps.keys() | tries.known.keys()
    return Plan(tuple(found), None if found else nearest, len(runs), tries.enough and len(found) < WANTED)


def is_enough(less: tuple[Change, ...], more: tuple[Change, ...]) -> bool:
    """Whether `more` only adds to `less`: other changes, or more of the same."""
    return all(any(own.kind == other.kind and own.cost <= other.cost for other in more) for own in less)


def by_price(known: Sequence[Change]) -> Iterator[tuple[Change, ...]]:
    """Sets of changes of different kinds, the cheaper ones first."""
    sets = [
        chosen
        for number in range(1, TOGETHER + 1)
        for chosen in combinations(known, number)
        if len({change.kind for change in chosen}) == number
    ]
    yield from sorted(sets, key=lambda chosen: sum(change.cost for change in chosen))
