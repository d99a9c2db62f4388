"""Llama 4's queries and keys: turned and normalized, or neither, and scaled by how far a token is into the text.

Read: `src/models/llama4.cpp` of llama.cpp af6528e6d (2026).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.dtypes import FLOAT32
from weigh.runtimes.llama_cpp import ggml
from weigh.runtimes.llama_cpp.ggml import Tensor

if TYPE_CHECKING:
    from weigh.runtimes.llama_cpp.builder import Builder

UNTURNED = 4
"""Every so manieth layer knows no positions (`n_no_rope_layer_step`)."""
UNNORMED = 128
"""Experts of the model whose queries and keys are not normalized (`LLM_TYPE_17B_128E`)."""


def turned(to: Builder, q: Tensor, k: Tensor, layer: int, rope: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:
    """Queries and keys as attention takes them."""
    if (layer + 1) % UNTURNED == 0:
        scale = to.once("scale of queries", lambda: ggml.given((1, 1, to.tokens)))
        return Tensor("MUL", q.ne, FLOAT32, (q, scale)), k
    q, k = ggml.like("ROPE", q, *rope), ggml.like("ROPE", k, *rope)
    if to.gguf.config.get("num_local_experts") == UNNORMED:
        return q, k
    return ggml.like("RMS_NORM", q), ggml.like("RMS_NORM", k)
