"""Compute and output buffers of a model that is placed: the graphs that llama.cpp reserves as it starts.

Read: `src/llama-context.cpp` (`sched_reserve`, `graph_reserve`, `output_reserve`). Two graphs are reserved: a whole
ubatch with the logits of every token, and one token of each sequence.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

from weigh.models.layout import SLIDING
from weigh.runtimes.llama_cpp import graphs
from weigh.runtimes.llama_cpp.batch import Batch, Sizes
from weigh.runtimes.llama_cpp.placement import CPU
from weigh.runtimes.llama_cpp.releases import OLDER
from weigh.runtimes.llama_cpp.scheduler import COPIES, Scheduler
from weigh.runtimes.llama_cpp.stack import Block, Stack, stack_of, whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from weigh.runtimes.llama_cpp.allocator import Lives
    from weigh.runtimes.llama_cpp.placement import Placement


class Reserved(NamedTuple):
    """A graph that is scheduled."""

    built_for: Sizes
    buffers: list[Lives]
    blocks: tuple[Block, ...]

    @property
    def is_steady(self) -> bool:
        """What is left out is what was built."""
        return all(one.is_steady(self.blocks) for one in self.buffers)

    def layout(self, names: Iterable[str] | None = None) -> Layout:
        """Its buffers, or some of them, for any context."""
        return Layout(self.blocks, [one for one in self.buffers if names is None or one.kind.name in names])


class Layout:
    """What some of a graph's buffers take as the context grows and nothing else does: points, and straight lines."""

    def __init__(self, blocks: Sequence[Block], buffers: Sequence[Lives]) -> None:
        self.buffers = buffers
        self._blocks = blocks
        self._twins = [next(n for n, one in enumerate(buffers) if one.twin is each.twin) for each in buffers]
        """Of each buffer, the first that is as large."""
        self._cells: list[int] = []
        """Of the points, in order."""
        self._points: list[list[tuple[int, tuple[int, ...]]]] = []

    def at(self, batch: Batch) -> list[int]:
        """Bytes of each buffer."""
        place = bisect_left(self._cells, batch.cells)
        if place == len(self._cells) or self._cells[place] != batch.cells:
            if 0 < place < len(self._cells):
                low, high = self._cells[place - 1 : place + 1]
                ends = list(zip(self._points[place - 1], self._points[place], strict=True))
                if all(first[1] == last[1] for first, last in ends):
                    return [a + (b - a) * (batch.cells - low) // (high - low) for (a, _), (b, _) in ends]
            self._cells.insert(place, batch.cells)
            own = {n: self.buffers[n].largest(batch.products, self._blocks) for n in dict.fromkeys(self._twins)}
            self._points.insert(place, [own[n] for n in self._twins])
        return [size for size, _ in self._points[place]]

    def is_below(self, batch: Batch, known: Mapping[str, int]) -> bool:
        """All buffers are smaller than known ones, at first sight."""
        return bool(known) and all(
            self.buffers[twin].at_most(batch.products, self._blocks) <= known.get(one.kind.name, 0)
            for one, twin in zip(self.buffers, self._twins, strict=True)
        )


class Compute:
    """Compute buffers of a placement, for any context and any number of sequences.

    Graphs are built with unknown sizes, of layers that are alike a few, and are laid out with the numbers at hand.
    """

    def __init__(self, placed: Placement) -> None:
        self.placed = placed
        self._graphs: dict[object, list[Reserved]] = {}
        self._layouts: dict[object, Layout] = {}
        self._found: dict[object, dict[str, int]] = {}

    def at(
        self, n_ctx: int, n_seq_max: int, unified: bool | None = None, names: tuple[str, ...] | None = None
    ) -> Mapping[str, int]:
        """Bytes of each compute buffer, by the name of its buffer type: the largest of the graphs that are reserved.

        `unified` says that the sequences share one cache, where that is not as it was placed; `names` asks for some of
        the buffers.

        Raises:
            NotModelledError: the architecture's graph is not described.
        """
        asked = n_ctx, n_seq_max, unified, names
        if asked in self._found:
            return self._found[asked]
        found: dict[str, int] = {}
        for batch in batches(self.placed, n_ctx, n_seq_max, unified):
            # a window is as long as the context, or has a length of its own
            window = 0 if batch.window == batch.cells else batch.window
            key = batch.tokens, batch.sequences, batch.streams, window, names
            layout = self._layouts.get(key)
            if layout is None:
                layout = self._layouts[key] = self._reserved(batch).layout(names)
            if not layout.is_below(batch, found):
                for one, size in zip(layout.buffers, layout.at(batch), strict=True):
                    found[one.kind.name] = max(found.get(one.kind.name, 0), size)
        self._found[asked] = found
        return found

    def _reserved(self, batch: Batch) -> Reserved:
        """The graph for a batch of that size, if not of those numbers."""
        # until the end of 2025 masks had rows for a multiple of tokens, which is no polynomial of them
        known = ("tokens",) if self.placed.how.release <= OLDER else ()
        numbers = (batch.tokens, batch.sequences) if known else None
        key = batch.sequences == 1, batch.streams == 1, numbers
        for one in self._graphs.setdefault(key, []):
            if one.built_for.hold_for(batch):
                return one
        self._graphs[key].append(self._steady(Sizes(batch, known)))
        return self._graphs[key][-1]

    def _steady(self, sizes: Sizes) -> Reserved:
        """With as few layers as say it all."""
        for last in (1, 2):
            found = reserve(self.placed, sizes, stack_of(self.placed.marks, last))
            if found.is_steady:
                return found
        return reserve(self.placed, sizes, whole(len(self.placed.gguf.layers)))


def batches(placed: Placement, n_ctx: int, n_seq_max: int, unified: bool | None = None) -> tuple[Batch, Batch]:
    """What graphs are reserved for."""
    how = placed.how
    unified = how.kv_unified if unified is None else unified
    tokens = -(-min(n_ctx, how.n_ubatch, how.n_batch) // n_seq_max)
    streams = 1 if unified else n_seq_max
    windows = (placed.cells(one, n_ctx, n_seq_max, unified) for one in placed.gguf.layers if one.kind == SLIDING)
    cells = n_ctx // streams, next(windows, n_ctx) // streams
    return (
        Batch(tokens, n_seq_max, streams, *cells),
        Batch(1, n_seq_max, streams, *cells),
    )


def reserve(placed: Placement, sizes: Sizes, stack: Stack) -> Reserved:
    """The graph of a batch with some of its layers, scheduled."""
    scheduler = Scheduler(
        placed.backends,
        sizes,
        COPIES if placed.is_pipelined else 1,
        placed.how.op_offload,
        {CPU, *({placed.family.host} if placed.family.host else ())},
    )
    found = scheduler.lives(graphs.build(placed, sizes, stack.built))
    first: dict[object, Lives] = {}
    for one in found:
        one.size_copies(stack, placed.gguf.tensors)
        one.twin = first.setdefault(one.history(stack.blocks), one)
    return Reserved(sizes, found, stack.blocks)


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
