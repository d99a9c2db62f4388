"""The CPU's kernels: its fused attention, its dropout, layer norm statistics in the input's dtype."""

from __future__ import annotations

from typing import Any

from weigh.dtypes import BOOL
from weigh.ghost import ops
from weigh.ghost.autocast import autocast
from weigh.ghost.ops.network import NativeLayerNorm
from weigh.ghost.ops.table import LOWER
from weigh.ghost.state import state
from weigh.ghost.tensor import Tensor, empty
from weigh.kernels.attention_math import math_attention


def cpu_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, causal: bool, grouped: bool
) -> Tensor:
    """The fused CPU kernel, but for dropout and trained masks (sdp_utils_cpp.cpp, `use_flash_attention_cpp`)."""
    if state.autocast is not None:
        low: tuple[Any, ...] = state.autocast.cast(LOWER, (query, key, value, mask))
        with autocast(None):
            return cpu_attention(low[0], low[1], low[2], low[3], dropout, causal, grouped)
    fits = not dropout and query.shape[-1] == value.shape[-1] and (grouped or query.shape[1] == key.shape[1])
    if not fits or (mask is not None and mask.requires_grad):
        return math_attention(query, key, value, mask, dropout, causal, grouped)
    if mask is not None and mask.dtype is BOOL:
        mask = ops.where(mask, ops.scalar_tensor(query.dtype), ops.scalar_tensor(query.dtype))
    return ops.flash_attention_cpu(query, key, value, mask)


class CpuLayerNorm(NativeLayerNorm):
    """Mean and rstd have the dtype of the input, or of the weight where the two differ (mixed precision)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> list[Tensor]:
        op = "aten::native_layer_norm"
        stats = weight.dtype if weight is not None else x.dtype
        if ctx:
            ctx.save(x, weight, bias)
        out = empty(x.shape, x.dtype, op)
        mean, rstd = empty((*x.shape[:-1], 1), stats, op), empty((*x.shape[:-1], 1), stats, op)
        if ctx:
            ctx.save_output(mean)
            ctx.save_output(rstd)
        return [out, mean, rstd]


CPU: dict[str, Any] = {
    "device": "cpu",
    "scaled_dot_product_attention": cpu_attention,
    "dropout": ops.cpu_dropout,
    "aten::native_layer_norm": CpuLayerNorm,
}
