"""Attention over a cache: what is written, what is read, with flash attention and without, and latent attention.

Read: `src/llama-graph.cpp` (`build_qkv`, `build_attn`, `build_attn_mha`), `src/llama-kv-cache.cpp` of the releases in
`releases.py`, `src/models/deepseek2.cpp`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh import dtypes
from weigh.dtypes import FLOAT16, FLOAT32, INT64
from weigh.models.layout import SLIDING
from weigh.runtimes.llama_cpp import ggml, llama4, per_layer
from weigh.runtimes.llama_cpp.ggml import Tensor
from weigh.runtimes.llama_cpp.releases import NEWER, OLDER, OLDEST

if TYPE_CHECKING:
    from weigh.models.layout import LayerCache
    from weigh.runtimes.llama_cpp.builder import Builder

MASK_PADDING = 64
"""Rows of a mask are a multiple of it, until the end of 2025 (`GGML_KQ_MASK_PAD`)."""


def attend(to: Builder, q: Tensor, k: Tensor | None, v: Tensor | None, layer: int, stem: str | None) -> Tensor:
    """`build_attn`: into the cache, attention, and the matrix after it, if one is named."""
    source = per_layer.source_of(to, layer)
    kept, graph = to.gguf.layers[source], to.graph
    windows = any(one.kind == SLIDING for one in to.gguf.layers)
    rotate_keys, rotate_values = _rotation(to, kept, "k"), _rotation(to, kept, "v")
    q, k, v = _rotated(q, rotate_keys), k and _rotated(k, rotate_keys), v and _rotated(v, rotate_values)
    order = (q, v, k) if to.release > OLDER and not windows else (q, k, v)
    for tensor in order:
        if tensor is not None:
            graph.expand(tensor)
    if k is not None:
        graph.expand(_write(to, k, "k", layer))
    if v is not None:
        graph.expand(_write(to, v, "v", layer))
    x = _attention(to, q, source, to.weight(f"blk.{layer}.attn_sinks.weight"), kept)
    x = _rotated(x, rotate_values)
    return x if stem is None else to.linear(x, stem)


def _rotation(to: Builder, kept: LayerCache, which: str) -> Tensor | None:
    """The Hadamard matrix that a quantized cache's vectors are turned by, since 2026 (`build_input_k_rot`)."""

    def make() -> Tensor | None:
        alike = [one for one in to.gguf.layers if one.heads]
        if to.release >= NEWER:
            alike = [one for one in alike if one.kind == kept.kind]
        widths = {one.key_width if which == "k" else one.value_width for one in alike}
        dtype, width = dtypes.get(to.how.type_k if which == "k" else to.how.type_v), min(widths)
        turns = to.release > OLDER and dtype.elements_per_block > 1 and len(widths) == 1 and not width % 64
        size = width & -width if which == "k" else 64
        return ggml.given((size, size)) if turns else None

    return to.once(("rotation", kept.kind == SLIDING and to.release >= NEWER, which), make)


def _cells(to: Builder, kept: LayerCache) -> int:
    return to.sizes.window if kept.kind == SLIDING else to.sizes.cells


def _cache(to: Builder, layer: int, which: str) -> Tensor:
    """Keys or values of a layer: (width, cells, streams)."""

    def make() -> Tensor:
        kept = to.gguf.layers[layer]
        width = kept.heads * (kept.key_width if which == "k" else kept.value_width)
        dtype = dtypes.get(to.how.type_k if which == "k" else to.how.type_v)
        found = ggml.new((width, _cells(to, kept), to.streams), dtype)
        found.buffer = to.placed.cache_buffer(layer)
        return found

    return to.once(("cache", layer, which), make)


def _mask(to: Builder, kept: LayerCache) -> Tensor:
    """Which cells a token sees, as attention reads it."""

    def make() -> Tensor:
        rows = to.tokens // to.streams
        if to.release <= OLDER:
            rows = -(-rows // MASK_PADDING) * MASK_PADDING
        is_half = to.flash and to.release >= NEWER
        made = ggml.given((_cells(to, kept), rows, 1, to.streams), FLOAT16 if is_half else FLOAT32)
        return ggml.cast(made, FLOAT16) if to.flash and not is_half else made

    return to.once(("mask", kept.kind == SLIDING), make)


def _indices(to: Builder, kept: LayerCache, which: str) -> Tensor:
    """Which cells the tokens are written to."""

    def make() -> Tensor:
        widest = max(one.heads * one.value_width for one in to.gguf.layers if one.heads)
        return ggml.given((to.tokens * (widest if which == "v" and not to.flash else 1),), INT64)

    return to.once(("indices", kept.kind == SLIDING, which), make)


def _copy(to: Builder, x: Tensor, which: str, layer: int) -> Tensor:
    """As the cache was written before there were indices: a copy into a part of it."""
    cache, tokens = _cache(to, layer, which), to.tokens
    if which == "v" and not to.flash:
        into = ggml.view(cache, (tokens, cache.ne[0]), (ggml.row(cache.dtype, cache.ne[1]),))
        x = ggml.transpose(ggml.reshape(x, x.ne[0] * x.ne[1], tokens))
    else:
        into = ggml.view(cache, (tokens * cache.ne[0],))
    return ggml.copy_into(x, into)


def _write(to: Builder, x: Tensor, which: str, layer: int) -> Tensor:
    if to.release <= OLDEST:
        return _copy(to, x, which, layer)
    kept, cache = to.gguf.layers[layer], _cache(to, layer, which)
    numbers = _indices(to, kept, which)
    rows = x.ne[0] * x.ne[1]
    if which == "v" and not to.flash:
        flat = ggml.reshape(x, rows, x.ne[2]) if x.nb[2] == ggml.row(x.dtype, rows) else ggml.cont(x, (rows, x.ne[2]))
        cells = ggml.reshape(cache, 1, cache.elements)
        return ggml.set_rows(cells, ggml.reshape(flat, 1, flat.elements), numbers)
    flat = ggml.view(x, (rows, x.ne[2]), (x.nb[2],))
    if to.streams > 1:
        cache = ggml.reshape(cache, cache.ne[0], cache.ne[1] * cache.ne[2])
    return ggml.set_rows(cache, flat, numbers)


def _read(to: Builder, which: str, layer: int) -> Tensor:
    kept, cache = to.gguf.layers[layer], _cache(to, layer, which)
    width = kept.key_width if which == "k" else kept.value_width
    cells, row = cache.ne[1], ggml.row
    if which == "v" and not to.flash:
        nb = row(cache.dtype, cells * width), row(cache.dtype, cells), row(cache.dtype, cells * cache.ne[0])
        return ggml.view(cache, (cells, kept.heads, width, to.streams), nb)
    nb = row(cache.dtype, width), row(cache.dtype, cache.ne[0]), row(cache.dtype, cache.ne[0] * cells)
    return ggml.view(cache, (width, kept.heads, cells, to.streams), nb)


def _attention(
    to: Builder, q: Tensor, layer: int, sinks: Tensor | None, kept: LayerCache, up: Tensor | None = None, rank: int = 0
) -> Tensor:
    """`build_attn_mha`; `up` makes values of latent vectors of `rank` numbers, which may be a part of the keys."""
    k, mask = _read(to, "k", layer), _mask(to, kept)
    v = _read(to, "v", layer) if kept.value_width else ggml.view(k, (rank, *k.ne[1:]), k.nb[1:])
    is_turned = bool(kept.value_width) and not to.flash
    n = to.streams
    q = ggml.view(q, (q.ne[0], q.ne[1], q.ne[2] // n, n), (q.nb[1], q.nb[2], q.nb[3] // n))
    q, k, v = (ggml.permute(t, 0, 2, 1, 3) for t in (q, k, v))
    if to.flash:
        x = ggml.flash_attention(q, k, v, mask, sinks)
        if up is not None:
            x = ggml.mul_mat(up, ggml.permute(x, 0, 2, 1, 3))
            x = ggml.cont(ggml.permute(x, 0, 2, 1, 3))
        x = ggml.reshape(x, x.ne[0] * x.ne[1], x.ne[2] * x.ne[3])
    else:
        scores = ggml.mul_mat(k, q)
        for _ in range(3 if to.style.caps_scores else 0):
            scores = ggml.like("SCALE", scores)
        scores = ggml.like("SOFT_MAX", scores, mask, sinks)
        x = ggml.mul_mat(v if is_turned else ggml.cont(ggml.transpose(v)), scores)
        x = ggml.permute(x if up is None else ggml.mul_mat(up, x), 0, 2, 1, 3)
        x = ggml.cont(x, (x.ne[0] * x.ne[1], x.ne[2] * x.ne[3]))
        if not to.how.offload_kqv:
            x.backend = len(to.placed.backends) - 1
    to.graph.expand(x)
    return x


def latent(to: Builder, x: Tensor, layer: int, rope: tuple[Tensor, Tensor | None]) -> Tensor:
    """DeepSeek's attention with one key a token: the latent vector and the rotary key (`llama_model_deepseek2`)."""
    stem, config, row = f"blk.{layer}.attn_", to.gguf.config, ggml.row
    nope, turned, rank = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["kv_lora_rank"]
    if to.has(f"{stem}q_a.weight"):
        q = to.linear(to.norm(to.linear(x, f"{stem}q_a"), f"{stem}q_a_norm", layer), f"{stem}q_b")
    else:
        q = to.linear(x, f"{stem}q")
    heads, head = q.ne[0] // (nope + turned), row(FLOAT32, nope + turned)
    q_nope = ggml.view(q, (nope, heads, to.tokens), (head, head * heads))
    q_turned = ggml.view(q, (turned, heads, to.tokens), (head, head * heads))
    both = to.linear(x, f"{stem}kv_a_mqa")
    wide = row(FLOAT32, rank + turned)
    latent = ggml.view(both, (rank, to.tokens), (wide,))
    k_turned = ggml.like("ROPE", ggml.view(both, (turned, 1, to.tokens), (wide, wide)), *rope)
    q_turned = ggml.like("ROPE", q_turned, *rope)
    latent = to.norm(latent, f"{stem}kv_a_norm", layer)
    up_keys, up_values = to.weight(f"{stem}k_b.weight"), to.weight(f"{stem}v_b.weight")
    if up_keys is None or up_values is None:
        return _expanded(to, q_nope, q_turned, latent, k_turned, layer)
    absorbed = ggml.permute(ggml.mul_mat(up_keys, ggml.permute(q_nope, 0, 2, 1, 3)), 0, 2, 1, 3)
    q = ggml.concat(absorbed, q_turned, 0)
    v = ggml.reshape(latent, rank, 1, to.tokens)
    k = ggml.concat(v, k_turned, 0)
    keeps_values = to.gguf.layers[layer].value_width > 0
    for tensor in (q, v, k) if to.release > OLDER else (q, k, v):
        to.graph.expand(tensor)
    to.graph.expand(_write(to, k, "k", layer))
    if keeps_values:
        to.graph.expand(_write(to, v, "v", layer))
    return to.linear(_attention(to, q, layer, None, to.gguf.layers[layer], up_values, rank), f"{stem}output")


def _expanded(to: Builder, q_nope: Tensor, q_turned: Tensor, latent: Tensor, k_turned: Tensor, layer: int) -> Tensor:
    """The same with keys and values of every head, of files from before April 2025."""
    stem, kept, row = f"blk.{layer}.attn_", to.gguf.layers[layer], ggml.row
    nope, heads, value = q_nope.ne[0], q_nope.ne[1], kept.value_width
    both = to.linear(latent, f"{stem}kv_b")
    head = row(FLOAT32, nope + value)
    keys = ggml.view(both, (nope, heads, to.tokens), (head, head * heads))
    v = ggml.cont(ggml.view(both, (value, heads, to.tokens), (head, head * heads)))
    k = ggml.concat(keys, Tensor("REPEAT", q_turned.ne, FLOAT32, (k_turned, q_turned)), 0)
    return attend(to, ggml.concat(q_nope, q_turned, 0), k, v, layer, f"{stem}output")


def queries(to: Builder, x: Tensor, layer: int, rope: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a layer with attention, normalized and rotated."""
    kept, stem = to.gguf.layers[layer], f"blk.{layer}.attn_"
    if to.has(f"{stem}qkv.weight"):
        fused = to.linear(x, f"{stem}qkv")
        count = fused.ne[0] - kept.heads * (kept.key_width + kept.value_width)
        sizes = (count, kept.key_width), (kept.heads * kept.key_width, kept.key_width)
        sizes = (*sizes, (kept.heads * kept.value_width, kept.value_width))  # type: ignore[assignment]
        q, k, v = (
            ggml.view(fused, (width, size // width, to.tokens), (ggml.row(FLOAT32, width), fused.nb[1]))
            for size, width in sizes
        )
        if to.release <= OLDEST:
            q, k = (ggml.reshape(ggml.cont(_flat(t)), *t.ne[:3]) for t in (q, k))
        if to.release <= OLDER:
            v = ggml.reshape(ggml.cont(_flat(v)), *v.ne[:3])
    else:
        q, k, v = (to.linear(x, f"{stem}{which}") for which in "qkv")
        if _norms_whole_rows(to, layer):
            q, k = to.norm(q, f"{stem}q_norm", layer), to.norm(k, f"{stem}k_norm", layer)
        q, k, v = (
            to.heads_of(q, kept.key_width),
            to.heads_of(k, kept.key_width),
            to.heads_of(v, kept.value_width),
        )
    if to.has(f"{stem}q_norm.weight") and not _norms_whole_rows(to, layer):
        q, k = to.norm(q, f"{stem}q_norm", layer), to.norm(k, f"{stem}k_norm", layer)
    if to.architecture == "llama4":
        q, k = llama4.turned(to, q, k, layer, rope)
    elif to.style.rotates:
        q, k = ggml.like("ROPE", q, *rope), ggml.like("ROPE", k, *rope)
    return q, k, v


def _norms_whole_rows(to: Builder, layer: int) -> bool:
    stored = to.gguf.tensors.get(f"blk.{layer}.attn_q_norm.weight")
    return stored is not None and stored.num_elements != to.gguf.layers[layer].key_width


def _rotated(x: Tensor, by: Tensor | None) -> Tensor:
    """`ggml_mul_mat_aux`."""
    if by is None:
        return x
    size = by.ne[0], x.elements // by.ne[0]
    flat = ggml.reshape(x, *size) if x.is_contiguous else ggml.cont(x, size)
    return ggml.reshape(ggml.mul_mat(by, flat), *x.ne)


def _flat(x: Tensor) -> Tensor:
    """A part of fused queries, keys and values as (width x heads, tokens)."""
    return ggml.view(x, (x.ne[0] * x.ne[1], x.ne[2]), (x.nb[2],))
