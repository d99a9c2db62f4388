"""Compute and output buffers of a model that is placed: the graphs that llama.cpp reserves as it starts.

Read: `src/llama-context.cpp` (`sched_reserve`, `graph_reserve`, `output_reserve`). Two graphs are reserved: a whole ubatch
with the logits of every token, and one token of each sequence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from weigh.models.layout import SLIDING
from weigh.runtimes.llama_cpp import graphs, unknowns
from weigh.runtimes.llama_cpp.batch import Batch
from weigh.runtimes.llama_cpp.placement import CPU
from weigh.runtimes.llama_cpp.releases import OLDER
from weigh.runtimes.llama_cpp.scheduler import COPIES, Scheduler
from weigh.runtimes.llama_cpp.stack import Block, Stack, stack_of, whole

if TYPE_CHECKING:
    from collections.abc import Mapping

    from weigh.runtimes.llama_cpp.allocator import Lives
    from weigh.runtimes.llama_cpp.placement import Placement


class Reserved(NamedTuple):
    """A graph that is scheduled."""

    batch: Batch
    buffers: list[Lives]
    blocks: tuple[Block, ...]

    @property
    def is_steady(self) -> bool:
        """What is left out is what was built."""
        return all(one.is_steady(self.blocks) for one in self.buffers)

    def sizes(self, at: Batch) -> dict[str, int]:
        """Bytes of each buffer."""
        products = unknowns.products(at.tokens, at.sequences, at.cells, at.window)
        return {one.kind.name: one.largest(products, self.blocks) for one in self.buffers}


class Compute:
    """Compute buffers of a placement, for any context and any number of sequences.

    Graphs are built with unknown sizes, of layers that are alike a few, and are laid out with the numbers at hand.
    """

    def __init__(self, placed: Placement) -> None:
        self.placed = placed
        self._graphs: dict[object, list[Reserved]] = {}
        self._found: dict[tuple[int, int], dict[str, int]] = {}

    def at(self, n_ctx: int, n_seq_max: int) -> Mapping[str, int]:
        """Bytes of each compute buffer, by the name of its buffer type: the largest of the graphs that are reserved.

        Raises:
            NotModelledError: the architecture's graph is not described.
        """
        key = n_ctx, n_seq_max
        if key not in self._found:
            found = self._found[key] = {}
            for batch in batches(self.placed, n_ctx, n_seq_max):
                for name, size in self._reserved(batch).sizes(batch).items():
                    found[name] = max(found.get(name, 0), size)
        return self._found[key]

    def _reserved(self, batch: Batch) -> Reserved:
        """The graph for a batch of that size, if not of those numbers."""
        known = self.placed.how.release <= OLDER
        key = batch.sequences == 1, batch.streams == 1, (batch.tokens, batch.sequences) if known else None
        reserved = self._graphs.setdefault(key, [])
        for one in reserved:
            if one.batch.least <= batch.known <= one.batch.most:
                return one
        # until the end of 2025 masks had rows for a multiple of tokens, which is no polynomial of them
        tokens = batch.tokens if known else unknowns.TOKENS
        sequences = batch.sequences if batch.sequences == 1 or known else unknowns.SEQUENCES
        streams = 1 if batch.streams == 1 else sequences
        unknown = Batch(tokens, sequences, streams, unknowns.CELLS, unknowns.WINDOW, batch.known)
        reserved.append(self._steady(unknown))
        return reserved[-1]

    def _steady(self, batch: Batch) -> Reserved:
        """With as few layers as say it all."""
        for last in (1, 2):
            found = reserve(self.placed, batch, stack_of(self.placed.marks, last))
            if found.is_steady:
                return found
        return reserve(self.placed, batch, whole(len(self.placed.gguf.layers)))


def batches(placed: Placement, n_ctx: int, n_seq_max: int) -> tuple[Batch, Batch]:
    """What graphs are reserved for."""
    how = placed.how
    tokens = -(-min(n_ctx, how.n_ubatch, how.n_batch) // n_seq_max)
    streams = 1 if how.kv_unified else n_seq_max
    window = next((placed.cells(one, n_ctx, n_seq_max) for one in placed.gguf.layers if one.kind == SLIDING), n_ctx)
    cells = n_ctx // streams, window // streams
    return (
        Batch(tokens, n_seq_max, streams, *cells, tokens * n_seq_max),
        Batch(1, n_seq_max, streams, *cells, n_seq_max),
    )


def reserve(placed: Placement, batch: Batch, stack: Stack) -> Reserved:
    """The graph of a batch with some of its layers, scheduled."""
    scheduler = Scheduler(
        placed.backends,
        batch,
        COPIES if placed.is_pipelined else 1,
        placed.how.op_offload,
        {CPU, *({placed.family.host} if placed.family.host else ())},
    )
    found = scheduler.lives(graphs.build(placed, batch, stack.built))
    for one in found:
        one.size_copies(stack, placed.gguf.tensors)
    return Reserved(batch, found, stack.blocks)


def compute_buffers(placed: Placement) -> Mapping[str, int]:
    """Bytes of each compute buffer, by the name of its buffer type.

    Raises:
        NotModelledError: the architecture's graph is not described.
    """
    return Compute(placed).at(placed.how.n_ctx, placed.how.n_seq_max)


def output_buffer(placed: Placement) -> int:
    """Bytes of the logits that are handed out, of a token of each sequence, and of its embedding where asked for."""
    width = placed.gguf.vocabulary + (placed.gguf.width if placed.how.embeddings else 0)
    return 4 * placed.how.n_seq_max * width
