"""Embeddings of layers (Gemma 3n, Gemma 4 E2B and E4B), and layers that read the keys and values of others.

Read: `src/models/gemma3n.cpp`, `gemma4.cpp` of llama.cpp af6528e6d (2026), and `reuse` in `src/llama-model.cpp`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.dtypes import FLOAT32, INT32
from weigh.runtimes.llama_cpp import ggml
from weigh.runtimes.llama_cpp.ggml import Tensor

if TYPE_CHECKING:
    from weigh.runtimes.llama_cpp.builder import Builder


def inputs(to: Builder, x: Tensor) -> Tensor:
    """What every layer is given beside the residual stream: (width, tokens, layers)."""
    layers, tokens = len(to.gguf.layers), to.tokens
    table = to.required("per_layer_token_embd.weight")
    width = table.ne[0] // layers
    found = ggml.get_rows(table, ggml.given((tokens,), INT32))
    found = ggml.like("SCALE", ggml.reshape(found, width, layers, tokens))
    to.graph.expand(found)
    projected = ggml.like("SCALE", ggml.mul_mat(to.required("per_layer_model_proj.weight"), x))
    projected = to.norm(ggml.reshape(projected, width, layers, tokens), "per_layer_proj_norm")
    found = ggml.like("SCALE", ggml.like("ADD", projected, found))
    return ggml.cont(ggml.permute(found, 0, 2, 1, 3), (width, tokens, layers))


def part(x: Tensor) -> Tensor:
    """One of the slices of the third dimension (`ggml_view_2d_slice`)."""
    return ggml.view(x, x.ne[:2], (ggml.row(FLOAT32, x.ne[0]),))


def source_of(to: Builder, layer: int) -> int:
    """The layer whose keys and values a layer reads: its own, or the last that keeps any of the same reach."""
    if to.gguf.layers[layer].heads:
        return layer
    own = [number for number, kept in enumerate(to.gguf.layers) if kept.heads]
    windows = to.gguf.config["layer_types"][layer] == "sliding_attention"
    return own[-1] + 1 - (2 if windows else 1)
