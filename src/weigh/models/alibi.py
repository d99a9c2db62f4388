"""ALiBi: a bias for every head, linear in the distance. What Bloom and Falcon share of it.

Mirrors `_get_alibi_slopes` and `build_alibi_tensor` of `transformers/models/bloom/modeling_bloom.py` (5.23) and
`build_alibi_tensor` of `falcon/modeling_falcon.py`, which differs in one cast.
"""

from __future__ import annotations

from weigh.dtypes import FLOAT32, INT32, DType
from weigh.ghost import ops
from weigh.ghost.tensor import Tensor


def alibi_slopes(num_heads: int) -> Tensor:
    """One slope a head, (heads,) in fp32; heads beyond a power of two take theirs from a finer series."""
    closest_power_of_2 = 1 << (num_heads.bit_length() - 1)
    base = ops.full((), FLOAT32)
    powers = ops.arange(closest_power_of_2, INT32)
    slopes = ops.power(base, powers)
    if closest_power_of_2 != num_heads:
        extra_base = ops.full((), FLOAT32)
        num_remaining_heads = min(closest_power_of_2, num_heads - closest_power_of_2)
        extra_powers = ops.arange(num_remaining_heads, INT32)
        slopes = ops.cat([slopes, ops.power(extra_base, extra_powers)], 0)
        del extra_base
    return slopes


def build_alibi_tensor(
    attention_mask: Tensor, num_heads: int, dtype: DType, through: DType = FLOAT32, slopes: Tensor | None = None
) -> Tensor:
    """(batch * heads, 1, length) for a padding mask (batch, length), the slopes cast to `through` first."""
    batch_size, seq_length = attention_mask.shape
    if slopes is None:
        slopes = alibi_slopes(num_heads)
    arange_tensor = ((ops.cumsum(attention_mask) - 1) * attention_mask).unsqueeze(1)
    alibi = slopes.unsqueeze(-1).to(through) * arange_tensor
    return alibi.reshape(batch_size * num_heads, 1, seq_length).to(dtype)
