"""What a process of PyTorch is asked to do, as plain data. Loads no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from weigh.records import dataclass

PROGRESS = "@step "
"""Begins a line that says how far a training has come."""
LOOKS = 6
"""How often in a training the loss is measured on held-out text, beside before and after."""


@dataclass(frozen=True, slots=True)
class Task:
    """One technique's training."""

    name: str
    config: Mapping[str, Any]
    recipe: Mapping[str, Any]
    """The settings of `weigh.recipes.training.Training`, as words."""
    folder: str
    """Where the text is, and the weights of those that ran before; this one's go there too."""
    steps: int
    """0: nothing is trained, batches are only read."""
    batch: int
    """Sequences in a step, over all micro-batches and processes."""
    seed: int
    rate: float
    """The learning rate at its highest."""
    begins: str | None = None
    """The technique whose weights it begins with."""
    surgery: str | None = None
    int8: bool = False
    teacher: Mapping[str, Any] | None = None
    """The config of the teacher."""
    keeps: bool = False
    """Others will begin with its weights, or learn from them."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Task:
        """Out of JSON."""
        return cls(**document)
