"""Gemma 3n's layers: four residual streams that predict and correct one another.

Beside these (AltUp) there are a detour of low rank (LAuReL), embeddings of layers, and sparse activations at first.

Read: `src/models/gemma3n.cpp` of llama.cpp af6528e6d (2026).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.dtypes import FLOAT32
from weigh.runtimes.llama_cpp import attention, ggml, per_layer
from weigh.runtimes.llama_cpp.ggml import Tensor, like
from weigh.runtimes.llama_cpp.per_layer import part

if TYPE_CHECKING:
    from weigh.runtimes.llama_cpp.builder import Builder

SPARSE = 10
"""Layers whose gates are cut off (`n_layer_sparsity`)."""


def streams(to: Builder, x: Tensor) -> Tensor:
    """The other residual streams beside the first: (width, tokens, streams)."""
    projection = to.required("altup_proj.weight")
    size = _magnitude(x)
    copies = ggml.repeat(x, x.ne[0], x.ne[1], projection.ne[2])
    added = ggml.mul_mat(projection, copies)
    added = like("DIV", like("MUL", added, size), _magnitude(added))
    return ggml.concat(x, added, 2)


def merged(to: Builder, x: Tensor) -> Tensor:
    """One residual stream again."""
    projection = to.required("altup_unembd_proj.weight")
    size = _magnitude(part(x))
    others = ggml.view(x, (x.ne[0], x.ne[1], x.ne[2] - 1), x.nb[1:3])
    added = ggml.mul_mat(projection, others)
    added = like("DIV", like("MUL", added, size), _magnitude(added))
    found = part(x)
    for _ in range(x.ne[2] - 1):
        found = like("ADD", found, part(added))
    return like("SCALE", found)


def _magnitude(x: Tensor) -> Tensor:
    return like("SQRT", ggml.sum_rows(like("SQR", x)))


def layer(to: Builder, x: Tensor, number: int, rope: tuple[Tensor, Tensor | None]) -> Tensor:
    """One block over all streams."""
    stem = f"blk.{number}."
    predictions = _predicted(to, x, number)
    active = part(predictions)
    read = to.norm(active, f"{stem}attn_norm", number)
    detour = to.linear(to.linear(read, f"{stem}laurel_l"), f"{stem}laurel_r")
    detour = like("ADD", to.norm(detour, f"{stem}laurel_post_norm", number), read)
    cur = _attended(to, read, number, rope)
    cur = like("ADD", to.norm(cur, f"{stem}post_attention_norm", number), active)
    middle = like("SCALE", like("ADD", cur, detour))
    cur = to.norm(middle, f"{stem}ffn_norm", number)
    up, gate = to.linear(cur, f"{stem}ffn_up"), to.linear(cur, f"{stem}ffn_gate")
    if number < SPARSE:
        gate = _cut_off(gate)
    cur = to.linear(like("MUL", up, like("UNARY", gate)), f"{stem}ffn_down")
    cur = like("ADD", to.norm(cur, f"{stem}post_ffw_norm"), middle)
    corrected = _corrected(to, predictions, cur, number)
    first = like("MUL", part(corrected), to.weight(f"{stem}altup_correct_scale.weight"))
    first = like("UNARY", to.linear(first, f"{stem}inp_gate"))
    first = like("MUL", first, part(to.once("inputs of layers", lambda: per_layer.inputs(to, x))))
    first = to.norm(to.linear(first, f"{stem}proj"), f"{stem}post_norm", number)
    rest = ggml.view(corrected, (x.ne[0], x.ne[1], x.ne[2] - 1), corrected.nb[1:3])
    return ggml.concat(part(corrected), Tensor("ADD", rest.ne, FLOAT32, (rest, first)), 2)


def _attended(to: Builder, x: Tensor, number: int, rope: tuple[Tensor, Tensor | None]) -> Tensor:
    stem = f"blk.{number}.attn_"
    kept = to.gguf.layers[per_layer.source_of(to, number)]
    turned = rope[0], None
    if to.gguf.layers[number].heads:
        q, k, v = (to.heads_of(to.linear(x, f"{stem}{which}"), kept.key_width) for which in "qkv")
        q, k = to.norm(q, f"{stem}q_norm", number), to.norm(k, f"{stem}k_norm", number)
        v = like("RMS_NORM", v)
        return attention.attend(to, like("ROPE", q, *turned), like("ROPE", k, *turned), v, number, f"{stem}output")
    q = to.norm(to.heads_of(to.linear(x, f"{stem}q"), kept.key_width), f"{stem}q_norm", number)
    return attention.attend(to, like("ROPE", q, *turned), None, None, number, f"{stem}output")


def _cut_off(x: Tensor) -> Tensor:
    """What is far enough above the mean (`gaussian_topk`)."""
    mean = Tensor("MEAN", (1, *x.ne[1:]), FLOAT32, (x,))
    spread = like("SQRT", like("SCALE", ggml.sum_rows(like("SQR", like("SUB", x, mean)))))
    return like("UNARY", like("SUB", x, like("ADD", mean, like("SCALE", spread))))


def _router(to: Builder, x: Tensor, number: int) -> Tensor:
    stem = f"blk.{number}.altup_router"
    return like("UNARY", to.linear(like("SCALE", to.norm(x, f"{stem}_norm", number)), stem))


def _predicted(to: Builder, x: Tensor, number: int) -> Tensor:
    count, tokens = x.ne[2], to.tokens
    shares = to.linear(_router(to, part(x), number), f"blk.{number}.altup_predict_coef")
    shares = ggml.reshape(shares, count, count, tokens)
    turned = ggml.permute(x, 1, 2, 0, 3)
    made = ggml.mul_mat(ggml.cont(turned), shares)
    return like("ADD", ggml.cont(ggml.permute(made, 0, 2, 1, 3)), x)


def _corrected(to: Builder, predictions: Tensor, x: Tensor, number: int) -> Tensor:
    count, tokens = predictions.ne[2], to.tokens
    modalities = _router(to, x, number)
    new = like("SUB", x, part(predictions))
    shares = like("SCALE", to.linear(modalities, f"blk.{number}.altup_correct_coef"))
    shares = ggml.cont(ggml.transpose(shares), (1, tokens, count))
    new = ggml.repeat(new, x.ne[0], tokens, count)
    return like("ADD", like("MUL", new, shares), predictions)
