"""SGLang: how many bytes its cache takes for its tokens. Its runs are not described yet.

Read: SGLang 0.5 (`python/sglang/srt/mem_cache/memory_pool.py`: `MHATokenToKVPool`, `MLATokenToKVPool`), whose buffers
have one page more than tokens, for padded writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.recipes.keeping import Keeping, keep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from weigh.dtypes import DType
    from weigh.models.layout import LayerCache


def pool_bytes(layers: Sequence[LayerCache], tokens: int, page: int, dtype: DType, tensor: int = 1) -> int:
    """Bytes of the pool of one rank; `tensor` is the ranks that share the heads."""
    kept = keep(layers, Keeping(1, tensor=tensor), dtype)
    return (tokens + page) * sum(layer.bytes_per_token for layer in kept)


def state_bytes(layers: Sequence[LayerCache], requests: int, dtype: DType, tensor: int = 1) -> dict[str, int]:
    """Bytes of the states of so many running requests and one slot more, by name: `conv` without its newest column."""
    found = {"recurrent_state_conv": 0, "recurrent_state_ssm": 0}
    for layer in layers:
        if layer.states:
            conv, recurrent = layer.states
            width, kernel = conv.shape
            found["recurrent_state_conv"] += dtype.num_bytes(width * (kernel - 1))
            found["recurrent_state_ssm"] += (recurrent.dtype or dtype).num_bytes(recurrent.elements)
    found = {name: (requests + 1) * size // tensor for name, size in found.items()}
    return {**found, "recurrent_state": sum(found.values())}


def attention_ranks(tensor: int, data: int, enable_dp_attention: bool) -> int:
    """Ranks that share the heads: data-parallel attention divides the tensor group.

    >>> attention_ranks(16, 4, True), attention_ranks(16, 4, False)
    (4, 16)
    """
    return tensor // data if enable_dp_attention else tensor
