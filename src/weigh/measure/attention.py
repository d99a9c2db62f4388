"""`scaled_dot_product_attention` on fake CUDA tensors: the kernel that a GPU would take.

A build without CUDA has no CUDA rule of choice and would run single ops for everything. The rules are those for compute
capability 8.0 and above, in the order flash, memory-efficient, single ops ("math"): see
aten/src/ATen/native/transformers/cuda/sdp_utils.cpp (`select_sdp_backend` and the checks that it names) and
transformers/attention.cpp (`preprocess_mask`, `pad_bias`, `pad_last_dim`). cuDNN's kernel is taken only where forced.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

aten = torch.ops.aten

KERNELS = ("flash", "efficient", "cudnn", "math")


class Attention:
    """Stands in for `torch.nn.functional.scaled_dot_product_attention`."""

    def __init__(self, forced: str | None = None) -> None:
        self.forced = forced
        self.calls: Counter[str] = Counter()
        """How often each kernel was taken."""
        self.original: Callable[..., Tensor] = functional.scaled_dot_product_attention

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        rest: dict[str, Any] = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale}
        if query.device.type != "cuda":
            return self.original(query, key, value, attn_mask, enable_gqa=enable_gqa, **rest)
        if torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
            value, key, query = value.to(dtype), key.to(dtype), query.to(dtype)  # a call's arguments, last one first
        kernel = self.forced or choose(query, key, value, attn_mask, is_causal, enable_gqa)
        self.calls[kernel] += 1
        if kernel == "flash":
            return _flash(query, key, value, **rest)
        if kernel == "math":
            return self.original(query, key, value, attn_mask, enable_gqa=enable_gqa, **rest)
        wanted = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
        if kernel == "cudnn":
            forced = (query, key, value, attn_mask, wanted, dropout_p, is_causal, False)
            return aten._scaled_dot_product_cudnn_attention(*forced, scale=scale)[0]
        args = (query, key, value, _mask(query, attn_mask), wanted, dropout_p, is_causal)
        return aten._scaled_dot_product_efficient_attention(*args, scale=scale)[0]


def choose(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, grouped: bool) -> str:
    """The kernel's name: "flash", "efficient" or "math"."""
    width = query.shape[-1]
    half = query.dtype in (torch.bfloat16, torch.float16)
    same_heads = query.shape[1] == key.shape[1]
    same_width = width == key.shape[-1] == value.shape[-1]
    whole = not is_causal or query.shape[-2] == key.shape[-2]
    if half and mask is None and width <= 256 and same_width and whole and (grouped or same_heads):
        return "flash"
    if same_heads and (half or query.dtype == torch.float32) and _aligned(query) and _aligned(value):
        return "efficient"
    return "math"


def _aligned(tensor: Tensor) -> bool:
    """Rows of whole 16-byte groups (`check_head_dim_size_mem_efficient`)."""
    return tensor.shape[-1] % max(4, 16 // tensor.element_size()) == 0


def _flash(query: Tensor, key: Tensor, value: Tensor, dropout_p: float, is_causal: bool, scale: float | None) -> Tensor:
    """Widths in multiples of eight; others are padded, and the output is cut."""
    width = query.shape[-1]
    scale = width**-0.5 if scale is None else scale
    short = -width % 8
    if short:
        query, key, value = (functional.pad(t, (0, short)) for t in (query, key, value))
    out: Tensor = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
    return out[..., :width] if short else out


def _mask(query: Tensor, mask: Tensor | None) -> Tensor | None:
    """Floats, every row aligned to 16 elements, one for every head."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        here: Any = {"dtype": query.dtype, "device": query.device}
        mask = torch.where(mask, torch.scalar_tensor(0.0, **here), torch.scalar_tensor(float("-inf"), **here))
    length = mask.shape[-1]
    if length % 16:
        mask = functional.pad(mask, (0, 16 - length % 16))[..., :length]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], length)
