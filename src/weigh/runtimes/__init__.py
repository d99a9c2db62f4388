"""Runtimes: programs that train or serve models, each with its own loop, defaults and overheads. One file each.

A runtime file says, with a link to that program's source and the versions read, what differs between programs that run
the same model: how the loop is written (which variable keeps which tensor alive), which settings it takes where nobody
says, and what lies outside of the framework's allocator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from weigh.errors import UnknownNameError, UsageError
from weigh.recipes import SOFTWARE
from weigh.records import dataclass, field

if TYPE_CHECKING:
    from weigh.recipes.loop import Loop
    from weigh.recipes.training import Training
    from weigh.runtimes.phases import JobPhase, Surroundings

RUNTIMES = {
    "deepspeed": "weigh.runtimes.deepspeed",
    "fsdp_qlora": "weigh.runtimes.fsdp_qlora",
    "litgpt": "weigh.runtimes.litgpt",
    "llms_from_scratch": "weigh.runtimes.llms_from_scratch",
    "megatron": "weigh.runtimes.megatron",
    "metamathqa": "weigh.runtimes.metamathqa",
    "ms-swift": "weigh.runtimes.ms_swift",
    "pytorch": "weigh.runtimes.pytorch",
    "torchtitan": "weigh.runtimes.torchtitan",
    "torchtune": "weigh.runtimes.torchtune",
    "transformers": "weigh.runtimes.transformers",
}
"""Name -> the module that describes it, as `RUNTIME`."""


@dataclass(frozen=True, slots=True)
class Overhead:
    """Memory of the device that no tensor has."""

    what: str
    num_bytes: int
    source: str
    """Where the figure comes from."""


def _plain() -> Loop:
    """A plain script's loop; what serves models has no use for it."""
    from weigh.recipes.loop import PLAIN

    return PLAIN


@dataclass(frozen=True, slots=True)
class Runtime:
    """A program that runs models."""

    name: str
    versions: str
    """Which were read."""
    loop: Loop = field(default_factory=_plain)
    """How it trains."""
    outside: tuple[Overhead, ...] = ()
    """What it takes on every device beside the allocator's memory."""
    software: str = SOFTWARE
    """What decides which tensors there are, for the reader of a report."""

    def settings(
        self, words: Mapping[str, Any], config: Mapping[str, Any], version: tuple[int, ...] | None
    ) -> dict[str, Any]:
        """The settings of a `Training` with what this program chooses where `words` do not say.

        `version` is its release as numbers; None is the one that was read.
        """
        return dict(words)

    def allocator(self, recipe: Training) -> str:
        """What its launcher sets PYTORCH_CUDA_ALLOC_CONF to."""
        return ""

    def phases(self, around: Surroundings) -> Iterator[JobPhase]:
        """What it does before, between and after its steps (see `weigh.runtimes.phases`)."""
        from weigh.runtimes.phases import not_read

        yield from not_read(self.name)


def named(text: str) -> tuple[Runtime, tuple[int, ...] | None]:
    """A runtime and its release, as people write them: "transformers", "transformers@4.48".

    Raises:
        UnknownNameError: there is none of that name.
        UsageError: the release is no version.
    """
    name, _, release = text.partition("@")
    parts = release.split(".") if release else []
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"{release!r} is no release", where="runtime", hint='Write it as "transformers@4.48".')
    return get(name), tuple(map(int, parts)) or None


def get(name: str) -> Runtime:
    """A runtime by its name.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in RUNTIMES:
        raise UnknownNameError("runtime", name, RUNTIMES)
    found: Runtime = import_module(RUNTIMES[name]).RUNTIME
    return found
