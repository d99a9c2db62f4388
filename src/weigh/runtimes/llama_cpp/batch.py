"""What a graph is built for: tokens, sequences and the cells that they see, known or unknown."""

from __future__ import annotations

from weigh.records import dataclass


@dataclass
class Batch:
    """The tokens that are computed at once."""

    tokens: int
    """Of each sequence; may be an unknown (`unknowns.py`), as all sizes here."""
    sequences: int
    """Sequences that the tokens are of."""
    streams: int
    """Parts of the cache: one for each sequence, or one for all."""
    cells: int
    """Of each part."""
    window: int
    """Of each part in layers with a window."""
    known: int
    """How many tokens there are in all, for what changes with their number."""
    least: int = 1
    """Fewer tokens in all, or more, and the graph would be another one."""
    most: int = 2**62

    @property
    def total(self) -> int:
        """Tokens of all sequences."""
        return self.tokens * self.sequences

    def reaches(self, size: int, bound: int) -> bool:
        """Whether a multiple of the tokens is as much as that."""
        times = size // self.total
        if not times:
            return size >= bound
        at = -(-bound // times)
        if self.known >= at:
            self.least = max(self.least, at)
            return True
        self.most = min(self.most, at - 1)
        return False
