"""CUDA: which attention kernel `scaled_dot_product_attention` takes.

Mirrors the choice for compute capability 8.0 and above (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp):
FlashAttention where it can, else the memory-efficient kernel, else single ops. PyTorch built with a recent cuDNN
prefers cuDNN's kernel on capability 9 and 10; it saves what FlashAttention saves but for eight bytes of random state,
so that the choice between the two does not show in what is saved. Force it with `attention_kernel="cudnn"`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from weigh.dims import round_up
from weigh.dtypes import BFLOAT16, BOOL, FLOAT16, FLOAT32
from weigh.errors import UnknownNameError
from weigh.ghost import ops
from weigh.ghost.autocast import autocast
from weigh.ghost.ops.attention import FlashAttentionBackward
from weigh.ghost.ops.table import LOWER
from weigh.ghost.state import state
from weigh.ghost.tensor import Tensor, empty
from weigh.kernels.attention_math import math_attention

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None, float, bool, bool], Tensor]

ATTENTION_KERNELS = ("flash", "efficient", "cudnn", "math")


def attention_choice(forced: str | None = None, unchecked: bool = False) -> Attention:
    """What `scaled_dot_product_attention` is on CUDA.

    Raises:
        UnknownNameError: `forced` is no kernel.
    """
    if forced is not None and forced not in ATTENTION_KERNELS:
        raise UnknownNameError("attention kernel", forced, ATTENTION_KERNELS)

    def attention(
        query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, causal: bool, grouped: bool
    ) -> Tensor:
        if state.autocast is not None:
            # the recorder's stand-in for the function casts no mask
            bias = None if state.traced else mask
            low: tuple[Any, ...] = state.autocast.cast(LOWER, (query, key, value, bias))
            with autocast(None):
                return attention(low[0], low[1], low[2], mask if state.traced else low[3], dropout, causal, grouped)
        kernel = forced or choose(query, key, value, mask, causal, grouped, unchecked)
        if kernel == "flash":
            return _flash(query, key, value, causal)
        if kernel == "cudnn":
            return ops.cudnn_attention(query, key, value)
        if kernel == "efficient":
            return ops.efficient_attention(query, key, value, _efficient_mask(query, mask), causal)
        return math_attention(query, key, value, mask, dropout, causal, grouped)

    return attention


class GpuFlashAttentionBackward(FlashAttentionBackward):
    """With what the real kernel allocates inside, which fake tensors do not show. Modelled: read off the source.

    fp32 `softmax_d` (batch, heads, length) and `dq_accum` (batch, length, heads, width), lengths rounded up to 128 and
    widths to 32 (above 128 to 64); and where heads are grouped, `dk` and `dv` for every query head, before they are
    summed. Left out: the deterministic variant, which has several `dq_accum`.
    """

    source = "transformers/cuda/flash_attn/flash_api.cpp, mha_bwd"

    @classmethod
    def forward(
        cls, ctx: Any, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *, causal: bool
    ) -> list[Tensor]:
        gradients = super().forward(ctx, grad, query, key, value, causal=causal)
        batch, heads, length, width = query.shape
        rows, columns = round_up(length, 128), round_up(width, 32 if width <= 128 else 64)
        workspace = [empty((batch, heads, rows), FLOAT32, cls.name)]
        workspace.append(empty((batch, rows, heads, columns), FLOAT32, cls.name))
        if key.shape[1] is not heads and key.shape[1] != heads:
            expanded = (batch, key.shape[2], heads, width)
            workspace += [empty(expanded, key.dtype, cls.name), empty(expanded, value.dtype, cls.name)]
        del workspace
        return gradients


def choose(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    grouped: bool,
    unchecked: bool = False,
) -> str:
    """The kernel's name: "flash", "efficient" or "math" (`select_sdp_backend`)."""
    if not grouped and not unchecked and query.shape[1] != key.shape[1]:
        return "math"  # `check_batch_size_and_num_heads_dense`: no fused kernel broadcasts heads
    width = query.shape[-1]
    half = query.dtype is BFLOAT16 or query.dtype is FLOAT16
    same_width = width == key.shape[-1] and width == value.shape[-1]
    whole = not causal or query.shape[-2] is key.shape[-2] or query.shape[-2] == key.shape[-2]
    if half and mask is None and same_width and width <= 256 and whole:
        return "flash"
    grouped = grouped and query.shape[1] != key.shape[1]
    if not grouped and (half or query.dtype is FLOAT32) and (unchecked or _aligned(query, value)):
        return "efficient"
    return "math"


def _aligned(query: Tensor, value: Tensor) -> bool:
    """`check_head_dim_size_mem_efficient`: widths in whole 16-byte groups, at least four elements."""
    alignment = max(4, 16 // query.dtype.itemsize)
    return query.shape[-1] % alignment == 0 and value.shape[-1] % alignment == 0


def _flash(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """FlashAttention wants widths in multiples of eight: others are padded, and the output is cut (`pad_last_dim`)."""
    width = query.shape[-1]
    short = -width % 8
    if not short:
        return ops.flash_attention(query, key, value, causal)
    query, key, value = ops.pad(query, short), ops.pad(key, short), ops.pad(value, short)
    return ops.flash_attention(query, key, value, causal).narrow(-1, width)


def _efficient_mask(query: Tensor, mask: Tensor | None) -> Tensor | None:
    """The memory-efficient kernel wants a float mask for every head, its rows aligned to 16 (`preprocess_mask`)."""
    if mask is None:
        return None
    if mask.dtype is BOOL:
        mask = ops.where(mask, ops.scalar_tensor(query.dtype), ops.scalar_tensor(query.dtype))
    length = mask.shape[-1]
    if length % 16 != 0:
        mask = ops.pad(mask, 16 - length % 16).narrow(-1, length)
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], length)


CUDA: dict[str, Any] = {FlashAttentionBackward.name: GpuFlashAttentionBackward}
"""What real CUDA kernels allocate beyond their outputs; left out where a run is compared with fake tensors."""
