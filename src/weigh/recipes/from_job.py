"""From what files say about a training to the settings that are run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.errors import NotModelledError, UsageError
from weigh.jobs import Job
from weigh.recipes.settings import settings
from weigh.recipes.training import Training

Taken = tuple[str, str, str]


def settle(job: Job, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[Taken]]:
    """A job's settings under those that are given, and what is taken for granted: what, why, with what effect.

    Raises:
        NotModelledError: the job asks for something that no setting can say, or that no setting knows.
        UsageError: a recipe of our own has a setting that there is not.
    """
    known = {s.name: s for s in settings(Training)}
    wanted = {name.replace("-", "_"): value for name, value in given.items() if value is not None}
    words = {name: value for name, value in job.words.items() if name not in wanted}
    ours = "weigh" in job.read_as.values()
    devices = _devices({**words, **wanted})
    if devices > 1:
        words |= {name: value for name, value in job.among_many.items() if name not in wanted}
    for name, value in words.items():
        where = job.said_by.get(name)
        if name not in known and ours:
            raise _unknown(name, where, known)
        if name not in known:
            raise NotModelledError(f"{name.replace('_', ' ')} {value!r}", where=where)
        try:
            known[name].read(value)
        except UsageError as error:
            if not ours and known[name].choices is not None:
                what = f"the {name.replace('_', ' ')} {value!r}"
                hint = f"Say on the command line what to take instead: --{name.replace('_', '-')}."
                raise NotModelledError(what, where=where, hint=hint) from None
            raise UsageError(error.what, where=where, hint=error.hint) from None
    return {**words, **wanted}, [*job.assumed, *_further(job, words, devices)]


def _unknown(name: str, where: str | None, known: Mapping[str, Any]) -> UsageError:
    from weigh.jobs.recipe import BESIDE
    from weigh.recipes.settings import did_you_mean

    return UsageError(f"there is no setting {name!r}", where=where, hint=did_you_mean(name, (*BESIDE, *known)))


def _devices(words: Mapping[str, Any]) -> int:
    sizes = [words.get(name, 1) for name in ("nodes", "gpus_per_node")]
    return int(sizes[0]) * int(sizes[1]) if all(str(s).isdecimal() for s in sizes) else 1


def _further(job: Job, words: Mapping[str, Any], devices: int) -> list[Taken]:
    """What the files leave open, and what they say that nobody here knows."""
    found: list[Taken] = []
    defaults: dict[str, list[str]] = {}
    for name in words:
        if name in job.defaults:
            defaults.setdefault(job.said_by[name], []).append(f"{name.replace('_', ' ')} {words[name]}")
    for program, chosen in defaults.items():
        found.append((", ".join(chosen), f"{program}, where its file does not say", "as the settings' own"))
    if job.unknown:
        why = "no key of that name is known to decide memory, or not to"
        found.append((f"{', '.join(job.unknown)} changes no byte", why, "if one of them does, the answer is another"))
    if devices == 1 and "gpus_per_node" not in words and (job.among_many or "shard" in words):
        why = "the files do not say how many there are"
        found.append(("one device", why, "give --gpus-per-node and --nodes: sharing divides what is shared"))
    return found
