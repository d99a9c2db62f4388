"""Compute and output buffers of a model that is placed: the graphs that llama.cpp reserves as it starts.

Read: `src/llama-context.cpp` (`sched_reserve`, `graph_reserve`, `output_reserve`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.runtimes.llama_cpp import graphs
from weigh.runtimes.llama_cpp.graphs import Batch
from weigh.runtimes.llama_cpp.placement import CPU
from weigh.runtimes.llama_cpp.scheduler import COPIES, Scheduler

if TYPE_CHECKING:
    from collections.abc import Mapping

    from weigh.runtimes.llama_cpp.placement import Placement


def compute_buffers(placed: Placement, whole: bool = False) -> Mapping[str, int]:
    """Bytes of each compute buffer, by the name of its buffer type: the largest of the graphs that are reserved.

    These are a whole ubatch with the logits of every token, and one token of each sequence. Of layers that are alike,
    the first and the last are built, because a layer leaves the buffers as it found them; `whole` builds them all.

    Raises:
        NotModelledError: the architecture's graph is not described.
    """
    how, found = placed.how, dict[str, int]()
    tokens = min(how.n_ctx, how.n_ubatch, how.n_batch)
    tokens = -(-tokens // how.n_seq_max) * how.n_seq_max
    layers = range(len(placed.gguf.layers)) if whole else placed.typical_layers()
    for batch in (Batch(tokens, tokens, how.n_seq_max), Batch(how.n_seq_max, how.n_seq_max, how.n_seq_max)):
        scheduler = Scheduler(
            placed.backends,
            COPIES if placed.is_pipelined else 1,
            how.op_offload,
            {CPU, *({placed.family.host} if placed.family.host else ())},
        )
        graph = graphs.build(placed, batch, layers)
        for name, size in scheduler.reserve(graph).items():
            found[name] = max(found.get(name, 0), size)
    return found


def output_buffer(placed: Placement) -> int:
    """Bytes of the logits that are handed out, of a token of each sequence, and of its embedding where asked for."""
    width = placed.gguf.vocabulary + (placed.gguf.width if placed.how.embeddings else 0)
    return 4 * placed.how.n_seq_max * width
