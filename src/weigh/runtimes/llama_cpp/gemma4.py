"""Gemma 4's layers: values from keys where a layer has no matrix for them, and experts beside a feed-forward.

The small ones have embeddings of layers too, and layers that read the keys and values of others.

Read: `src/models/gemma4.cpp` of 2026.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.errors import NotModelledError
from weigh.runtimes.llama_cpp import attention, ggml, mlp, per_layer
from weigh.runtimes.llama_cpp.releases import NEWER

if TYPE_CHECKING:
    from weigh.runtimes.llama_cpp.builder import Builder
    from weigh.runtimes.llama_cpp.ggml import Tensor


def layer(to: Builder, x: Tensor, number: int, rope: tuple[Tensor, Tensor | None], wanted: Tensor | None) -> Tensor:
    """One block."""
    stem, kept = f"blk.{number}.", to.gguf.layers[per_layer.source_of(to, number)]
    embedded = None
    if to.release < NEWER and (to.has("per_layer_token_embd.weight") or not to.gguf.layers[number].heads):
        raise NotModelledError(f"the compute graph of Gemma 4's small models before llama.cpp@{NEWER[0]}.{NEWER[1]}")
    if to.has("per_layer_token_embd.weight"):
        embedded = to.once("inputs of layers", lambda: per_layer.inputs(to, x))
    read = to.norm(x, f"{stem}attn_norm", number)
    positions, factors = rope
    turned = (positions, factors if kept.window is None else None)
    q = to.norm(to.heads_of(to.linear(read, f"{stem}attn_q"), kept.key_width), f"{stem}attn_q_norm", number)
    q = ggml.like("ROPE", q, *turned)
    if to.gguf.layers[number].heads:
        key = to.linear(read, f"{stem}attn_k")
        value = to.linear(read, f"{stem}attn_v") if to.has(f"{stem}attn_v.weight") else key
        k, v = to.heads_of(key, kept.key_width), to.heads_of(value, kept.value_width)
        k = to.norm(k, f"{stem}attn_k_norm", number)
        v = ggml.like("RMS_NORM", v)
        cur = attention.attend(to, q, ggml.like("ROPE", k, *turned), v, number, f"{stem}attn_output")
    else:
        cur = attention.attend(to, q, None, None, number, f"{stem}attn_output")
    if wanted is not None:
        cur, x = ggml.get_rows(cur, wanted), ggml.get_rows(x, wanted)
    middle = ggml.like("ADD", to.norm(cur, f"{stem}post_attention_norm", number), x)
    cur = _experts(to, middle, number) if to.has(f"{stem}ffn_gate_inp.weight") else _plain(to, middle, number)
    cur = ggml.like("ADD", to.norm(cur, f"{stem}post_ffw_norm"), middle)
    if embedded is not None:
        own = per_layer.part(embedded)
        added = ggml.like("UNARY", to.linear(cur, f"{stem}inp_gate"))
        added = ggml.like("MUL", added, own if wanted is None else ggml.get_rows(own, wanted))
        added = to.norm(to.linear(added, f"{stem}proj"), f"{stem}post_norm", number)
        cur = ggml.like("ADD", cur, added)
    scale = to.weight(f"{stem}layer_output_scale.weight")
    return cur if scale is None else ggml.like("MUL", cur, scale)


def _plain(to: Builder, x: Tensor, number: int) -> Tensor:
    return mlp.feed_forward(to, to.norm(x, f"blk.{number}.ffn_norm", number), number)


def _experts(to: Builder, x: Tensor, number: int) -> Tensor:
    stem = f"blk.{number}."
    dense = to.norm(_plain(to, x, number), f"{stem}post_ffw_norm_1", number)
    read = to.norm(x, f"{stem}pre_ffw_norm_2", number)
    routed = ggml.like("MUL", ggml.like("SCALE", ggml.like("RMS_NORM", x)), to.weight(f"{stem}ffn_gate_inp.scale"))
    sparse = mlp.experts(to, read, number, to.linear(routed, f"{stem}ffn_gate_inp"))
    return ggml.like("ADD", dense, to.norm(sparse, f"{stem}post_ffw_norm_2", number))
