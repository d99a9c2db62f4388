"""What a graph is built for: tokens, sequences and the cells that they see, known or unknown."""

from __future__ import annotations

from functools import cached_property

from weigh.records import dataclass
from weigh.runtimes.llama_cpp.unknowns import CELLS, SEQUENCES, TOKENS, WINDOW, polynomial, products, value


@dataclass(frozen=True)
class Batch:
    """The tokens that are computed at once."""

    tokens: int
    """Of each sequence."""
    sequences: int
    """Sequences that the tokens are of."""
    streams: int
    """Parts of the cache: one for each sequence, or one for all."""
    cells: int
    """Of each part."""
    window: int
    """Of each part in layers with a window."""

    @property
    def total(self) -> int:
        """Tokens of all sequences."""
        return self.tokens * self.sequences

    @cached_property
    def products(self) -> tuple[int, ...]:
        """What unknowns and their products come to."""
        return products(self.tokens, self.sequences, self.cells, self.window)


class Sizes:
    """The sizes with which the graph of a batch is built: unknown, but for questions with few answers.

    Of tokens and cells, those that `known` names are as many as the batch has.
    """

    def __init__(self, batch: Batch, known: tuple[str, ...] = ()) -> None:
        self.batch = batch
        is_known = "tokens" in known
        self.tokens = batch.tokens if is_known else TOKENS
        """Of a sequence, as all of these are named in `Batch`."""
        self.sequences = batch.sequences if is_known or batch.sequences == 1 else SEQUENCES
        self.streams = 1 if batch.streams == 1 else self.sequences
        self.cells, self.window = (batch.cells, batch.window) if "cells" in known else (CELLS, WINDOW)
        self.total = self.tokens * self.sequences
        self._asked: dict[tuple[int, int], bool] = {}

    def reaches(self, size: int, bound: int) -> bool:
        """Whether a size comes to as much as that."""
        key = size, bound
        if key not in self._asked:
            self._asked[key] = value(polynomial(size), self.batch.products) >= bound
        return self._asked[key]

    def hold_for(self, batch: Batch) -> bool:
        """The answers are those of another batch too."""
        return all(
            (value(polynomial(size), batch.products) >= bound) == said for (size, bound), said in self._asked.items()
        )
