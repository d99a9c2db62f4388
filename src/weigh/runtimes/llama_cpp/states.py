"""Recurrent states: where they are kept, how a graph reads them and writes them back.

Read: `build_rs` of `src/llama-graph.cpp` of 2026. Graphs are reserved for all sequences at once, so that no state is
left over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.dtypes import INT32
from weigh.runtimes.llama_cpp import ggml
from weigh.runtimes.llama_cpp.ggml import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from weigh.runtimes.llama_cpp.builder import Builder


def _kept(to: Builder, layer: int, which: int) -> Tensor:
    """A layer's states of all sequences: of its convolution (0), of its recurrence (1)."""

    def make() -> Tensor:
        found = ggml.new((to.gguf.layers[layer].states[which].elements, to.sizes.sequences))
        found.buffer = to.placed.cache_buffer(layer)
        return found

    return to.once(("state", layer, which), make)


def read(to: Builder, layer: int, which: int, rows: Callable[[Tensor, Tensor], Tensor] = ggml.get_rows) -> Tensor:
    """The states of the sequences at hand, or what `rows` makes of them and their numbers.

    One is cleared first, and those that are left over are copied.
    """
    graph, sequences = to.graph, to.sizes.sequences
    kept, size = _kept(to, layer, which), to.gguf.layers[layer].states[which].elements
    states = ggml.reshape(kept, size, sequences)
    cleared = ggml.view(states, (size,))
    graph.expand(Tensor("SCALE", cleared.ne, cleared.dtype, (cleared,), cleared))
    numbers = to.once("numbers of states", lambda: ggml.given((sequences,), INT32))
    main = to.once("of those at hand", lambda: ggml.view(numbers, (sequences,)))
    extra = to.once("of those left over", lambda: ggml.view(numbers, (0,)))
    found = rows(states, main)
    graph.expand(found)
    graph.expand(ggml.copy_into(ggml.get_rows(states, extra), ggml.view(kept, (0,))))
    return found


def write(to: Builder, x: Tensor, layer: int, which: int) -> None:
    """The sequences' new states into their place."""
    to.graph.expand(ggml.copy_into(x, ggml.view(_kept(to, layer, which), (x.elements,))))
