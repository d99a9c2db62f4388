"""Recipes of our own: TOML or JSON, whose keys are the settings of a training, and `model`, `runtime` and `device`.

model = "llama-2-7b"
device = "h100"
batch = 4
sequence = "4k"
dtype = "bf16"
checkpointing = "full"

[lora]
rank = 16
targets = ["q_proj", "v_proj"]
"""

from __future__ import annotations

from typing import Any

from weigh.jobs.documents import Document, write
from weigh.jobs.job import Job

BESIDE = ("model", "runtime", "device")
"""Keys that are no settings."""


def recognises(document: Document) -> bool:
    """Whether it has the key that every recipe that was saved has."""
    return document.has("sequence", "batch") and not document.arguments


def read(document: Document, ignored: frozenset[str]) -> Job:
    """The recipe; who takes its words checks them."""
    words = {name.replace("-", "_"): value for name, value in document.keys.items() if name not in ignored}
    beside: dict[str, Any] = {name: words.pop(name, None) for name in BESIDE}
    return Job(
        read_as={document.where: "weigh"},
        words=words,
        said_by={name: f"{document.where}: {name}" for name in words},
        used=tuple(document.keys),
        **beside,
    )


def saved(path: str, model: Any, runtime: str, device: str | None, words: dict[str, Any]) -> str:
    """The text of a recipe file.

    Raises:
        WeighError: the name of the file says no format.
    """
    beside = {"model": model, "runtime": runtime, "device": device}
    return write(path, {name: value for name, value in (beside | words).items() if value is not None})
