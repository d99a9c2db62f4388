"""`_scaled_dot_product_attention_math`: attention out of single ops, where no fused kernel takes the inputs.

Source: aten/src/ATen/native/transformers/attention.cpp.
"""

from __future__ import annotations

from weigh.dtypes import BFLOAT16, BOOL, FLOAT16
from weigh.ghost import ops
from weigh.ghost.state import state
from weigh.ghost.tensor import Tensor


def math_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, causal: bool, grouped: bool
) -> Tensor:
    """(batch, heads, length, width). Half precision is computed in fp32; grouped heads are copied out."""
    origin = query.dtype
    if mask is not None and mask.dtype is BOOL:
        mask = _float_mask(mask, query)
    query_acc, key_acc, value_acc = query, key, value
    if origin is FLOAT16 or origin is BFLOAT16:
        query_acc, key_acc, value_acc = query.float(), key.float(), value.float()
    scaled = query_acc * 0.5
    if causal:
        mask = _causal_mask(scaled, key)
    key_expanded, value_expanded = key_acc, value_acc
    if grouped:
        groups = _ratio(query, key)
        key_expanded, value_expanded = _repeat(key_acc, groups), _repeat(value_acc, groups)
    attn = scaled.matmul(key_expanded.transpose(-2, -1) * 0.5)
    if mask is not None:
        attn = (ops.add if state.traced else ops.add_)(attn, mask)
    attn = ops.safe_softmax(attn)
    attn = ops.dropout(attn, dropout, True)
    kept = attn.to(origin)  # `make_tuple(matmul(attn, value).to(origin), attn.to(origin))`, from the right
    out = attn.matmul(value_expanded).to(origin)
    del kept
    return out


def _causal_mask(query: Tensor, key: Tensor) -> Tensor:
    return _float_mask(ops.tril(ops.ones((query.shape[-2], key.shape[-2]), BOOL)), query)


def _float_mask(mask: Tensor, like: Tensor) -> Tensor:
    """`convert_boolean_attn_mask`: zero where allowed, minus infinity elsewhere."""
    return ops.where(mask, ops.scalar_tensor(like.dtype), ops.scalar_tensor(like.dtype))


def _ratio(query: Tensor, key: Tensor) -> int:
    groups = query.shape[1] // key.shape[1]
    assert isinstance(groups, int)
    return groups


def _repeat(x: Tensor, groups: int) -> Tensor:
    """`repeat_interleave(groups, -3)`: an expanded view, copied."""
    batch, heads, length, width = x.shape
    expanded = x.unsqueeze(2).expand(batch, heads, groups, length, width)
    return ops.clone_contiguous(expanded).view(batch, heads * groups, length, width)
