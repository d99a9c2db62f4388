"""What a report says about its own figures: how far they can be trusted, and what they rest on."""

from __future__ import annotations

from typing import NamedTuple

EXACT = "exact"
"""Follows from shapes and from rules that PyTorch states."""
MODELLED = "modelled"
"""Rests on a model of something with freedom of its own: an allocator, a kernel's workspace."""
ASSUMED = "assumed"
"""The user did not say, or no source states it."""


class Assumption(NamedTuple):
    """Something taken for granted, visible wherever the figures are."""

    what: str
    """What was assumed."""
    why: str
    """Why this and nothing else, with the source if there is one."""
    effect: str
    """What it does to the figures, or would."""

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return {"what": self.what, "why": self.why, "effect": self.effect}
