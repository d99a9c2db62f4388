"""Programs of attention: every kernel alone, and `scaled_dot_product_attention` with its choice among them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from support.inputs import PLAIN, Draw, Input, draw_input
from support.programs import CPU, CUDA, Drawn, program

HALVES = ("bfloat16", "float16")
FLOATS = ("float32", *HALVES)


def draw_heads(draw: Draw, dtype: str, width: int, heads: int, batch: int, length: int, grad: bool) -> Input:
    """(batch, heads, length, width), stored as such or position by position, as a model's projections leave it."""
    kept = draw_input(draw, (batch, heads, length, width), dtype, grad, PLAIN)
    if draw(st.booleans()):
        kept["strides"] = [length * heads * width, width, heads * width, 1]
    return kept


def qkv(dtypes: tuple[str, ...], widths: tuple[int, ...], grouped: bool, square: bool = False) -> Any:
    """Queries, keys and values; with fewer key heads where `grouped`."""

    def draw_three(draw: Draw) -> Drawn:
        dtype, width = draw(st.sampled_from(dtypes)), draw(st.sampled_from(widths))
        batch, length = draw(st.sampled_from((1, 2))), draw(st.sampled_from((1, 5, 32, 40)))
        keys = length if square or draw(st.booleans()) else draw(st.sampled_from((1, 7, 64)))
        groups = draw(st.sampled_from((1, 2))) if grouped else 1
        heads = draw(st.sampled_from((1, 2, 3)))
        grads = [True] * 3 if draw(st.integers(0, 3)) else [draw(st.booleans()) for _ in range(3)]
        return [
            draw_heads(draw, dtype, width, heads * groups, batch, length, grads[0]),
            draw_heads(draw, dtype, width, heads, batch, keys, grads[1]),
            draw_heads(draw, dtype, width, heads, batch, keys, grads[2]),
        ], {}

    return draw_three


FLASH = "_scaled_dot_product_flash_attention"
EFFICIENT = "_scaled_dot_product_efficient_attention"
CUDNN = "_scaled_dot_product_cudnn_attention"

program(
    "flash attention",
    f"{FLASH} {FLASH}_backward",
    qkv(HALVES, (8, 64), grouped=True),
    lambda ops, q, k, v: ops.flash_attention(q, k, v, False),
    (CUDA,),
)
program(
    "efficient attention",
    f"{EFFICIENT} {EFFICIENT}_backward",
    qkv(FLOATS, (8, 64), grouped=False),
    lambda ops, q, k, v: ops.efficient_attention(q, k, v, None, False),
    (CUDA,),
)
program(
    "cudnn attention",
    f"{CUDNN} {CUDNN}_backward",
    qkv(HALVES, (8, 64), grouped=True),
    lambda ops, q, k, v: ops.cudnn_attention(q, k, v),
    (CUDA,),
)
program(
    "flash attention on the CPU",
    f"{FLASH}_for_cpu {FLASH}_for_cpu_backward",
    qkv(FLOATS, (8, 100), grouped=False),
    lambda ops, q, k, v: ops.flash_attention_cpu(q, k, v, None),
    (CPU,),
)


def sdpa(
    ops: Any, query: Any, key: Any, value: Any, mask: Any = None, dropout: float = 0.0, causal: bool = False
) -> Any:
    """`scaled_dot_product_attention`, with grouped heads where there are fewer of keys."""
    grouped = query.shape[1] != key.shape[1]
    return ops.scaled_dot_product_attention(query, key, value, mask, dropout, causal, grouped)


def _masked(grouped: bool) -> Any:
    def draw_four(draw: Draw) -> Drawn:
        tensors, _ = qkv(FLOATS, (8, 64), grouped)(draw)
        query, key, _ = tensors
        shape = [1, 1, query["shape"][2], key["shape"][2]]
        if draw(st.booleans()):
            shape[0] = query["shape"][0]
        dtype = draw(st.sampled_from(("bool", query["dtype"])))
        return [*tensors, draw_input(draw, shape, dtype, False, PLAIN)], {}

    return draw_four


def _autocast_sdpa(ops: Any, *tensors: Any, dtype: str) -> Any:
    with ops.autocast(ops.dtype(dtype)):
        return sdpa(ops, *tensors)


def _lower(draw: Draw) -> Drawn:
    *tensors, mask = _masked(grouped=True)(draw)[0]
    return [*tensors, {**mask, "dtype": draw(st.sampled_from(("bool", "float32")))}], {
        "dtype": draw(st.sampled_from(HALVES))
    }


program("sdpa, autocast", "", _lower, _autocast_sdpa)
program("sdpa", "", qkv(FLOATS, (8, 64, 100), grouped=False), sdpa)
program(
    "sdpa, causal", "", qkv(FLOATS, (8, 20), grouped=False, square=True), lambda ops, *t: sdpa(ops, *t, causal=True)
)
program("sdpa, grouped", "", qkv(FLOATS, (8, 100), grouped=True), sdpa)
program("sdpa, masked", "", _masked(grouped=False), sdpa)
program("sdpa, masked and grouped", "", _masked(grouped=True), sdpa)
program("sdpa, dropout", "", qkv(FLOATS, (8, 64), grouped=True), lambda ops, *t: sdpa(ops, *t, dropout=0.1))
