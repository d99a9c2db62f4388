"""vLLM: what it lays out as it starts, and how many tokens its cache holds in a budget of bytes.

Read: vLLM 0.12 (`vllm/v1/core/kv_cache_utils.py`: `get_num_blocks`, `_get_kv_cache_groups_uniform_page_size`,
`get_kv_cache_config_from_groups`; `vllm/model_executor/models/config.py`: `HybridAttentionMambaModelConfig`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weigh.formats.prediction import predict
from weigh.models.layout import NOTHING
from weigh.recipes.keeping import Keeping, keep
from weigh.runtimes.engine import (
    EXACT,
    KV_CACHE,
    WEIGHTS,
    Engine,
    Launch,
    Part,
    Place,
    Served,
    ServeJob,
    Share,
    Version,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from weigh.dtypes import DType
    from weigh.models.layout import LayerCache

BLOCK = 16
"""Tokens of a block."""


def blocks(layers: Sequence[LayerCache], budget: int, dtype: DType, kv_dtype: str = "auto", tensor: int = 1) -> int:
    """Whole blocks in a budget of bytes on one rank.

    Layers of several kinds (windows and full attention) share blocks: each kind is divided into groups of as many
    layers as the rarest kind has, and a block holds the tokens of one group.
    """
    group, _ = _groups(layers)
    return budget // (BLOCK * _bytes_per_token(layers, dtype, kv_dtype, tensor) * group // _attentions(layers))


def tokens(layers: Sequence[LayerCache], budget: int, dtype: DType, kv_dtype: str = "auto", tensor: int = 1) -> int:
    """Tokens that all groups have room for.

    >>> from weigh.dtypes import BFLOAT16
    >>> from weigh.models.layout import FULL, LayerCache
    >>> tokens((LayerCache(FULL, 8, 128, 128),) * 36, 42176578847, BFLOAT16)
    286016
    """
    _, groups = _groups(layers)
    return blocks(layers, budget, dtype, kv_dtype, tensor) // groups * BLOCK


def _groups(layers: Sequence[LayerCache]) -> tuple[int, int]:
    """How many layers a group has, and how many groups there are."""
    kinds = Counter(layer.kind for layer in layers if layer.kind != NOTHING)
    size = min(kinds.values())
    return size, sum(-(-count // size) for count in kinds.values())


def _attentions(layers: Sequence[LayerCache]) -> int:
    return sum(layer.kind != NOTHING for layer in layers)


def _bytes_per_token(layers: Sequence[LayerCache], dtype: DType, kv_dtype: str, tensor: int) -> int:
    kept = keep(layers, Keeping(1, kv_dtype=kv_dtype, tensor=tensor), dtype)
    return sum(layer.bytes_per_token for layer in kept)


def hybrid_tokens(
    layers: Sequence[LayerCache],
    budget: int,
    dtype: DType,
    longest: int,
    drafts: int = 0,
    mtp_layers: int = 0,
    tensor: int = 1,
) -> int:
    """Tokens of requests of the `longest` length, where some layers have a state instead of keys and values.

    A page holds either one state or so many tokens that it is as large. A request needs pages for its tokens, and for
    its states: one and one for each token that a draft proposes, in each of the groups that the states' layers make.
    """
    attention = [layer for layer in layers if not layer.states]
    states = [layer for layer in layers if layer.states]
    per_token = _bytes_per_token(attention[:1], dtype, "auto", tensor)
    page = BLOCK * per_token
    state = _state_bytes(states[0], dtype, drafts, tensor)
    block = -(-state // page) * BLOCK
    page = block * per_token
    groups = -(-len(states) // len(attention))
    pages = budget // (page * (len(attention) + mtp_layers))
    needed = -(-longest // block) + groups * (1 + drafts)
    return pages * longest // needed


def _state_bytes(layer: LayerCache, dtype: DType, drafts: int, tensor: int) -> int:
    """Of one sequence: the convolution keeps its last inputs but one, and as many more as a draft may take back."""
    conv, recurrent = layer.states
    width, kernel = conv.shape
    inputs = width * (kernel - 1 + drafts)
    return (
        (conv.dtype or dtype).num_bytes(inputs) + (recurrent.dtype or dtype).num_bytes(recurrent.elements)
    ) // tensor


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """Settings of `vllm serve`, in its words."""

    gpu_memory_utilization: float | None = None
    """The share of the device's memory that it may take; 0.9, and 0.92 from 0.22 on, where nobody says."""
    max_num_seqs: int | None = None
    """Requests in a step at most."""
    max_num_batched_tokens: int | None = None
    """Tokens in a step at most."""
    enforce_eager: bool = False
    """No CUDA graphs, no compiled code."""


class Vllm(Engine):
    """vLLM."""

    name = "vllm"
    versions = ("0.12",)
    options = VllmOptions

    def launch(self, served: Served, job: ServeJob, options: VllmOptions, place: Place, version: Version) -> Launch:
        """Weights, and all that the utilization leaves for the cache."""
        weights = sum(s.num_bytes * s.count for s in predict(served.model, None, served.dtype)) // job.tensor
        share = options.gpu_memory_utilization or 0.9
        budget = None if place.memory_bytes is None else int(place.memory_bytes * share) - weights
        kept = keep(served.layers, Keeping(1, kv_dtype=job.kv_dtype, tensor=job.tensor), served.dtype)
        per_token = sum(layer.bytes_per_token for layer in kept)

        def demand(context: int, users: int) -> int:
            return -(-context // BLOCK) * BLOCK * per_token * users

        how = (served.layers, budget or 0, served.dtype, job.kv_dtype, job.tensor)
        held = None if budget is None else tokens(*how)
        cache = budget if budget is not None else demand(job.context or served.longest or 1, job.concurrency)
        parts = (
            Part("weights", WEIGHTS, weights, EXACT, "parameters x bytes, a share of each rank"),
            Part("KV cache", KV_CACHE, cache, EXACT, "what the utilization leaves"),
        )
        label = "GPU 0" if place.count == 1 else f"GPU 0 to {place.count - 1}"
        return Launch(
            (Share(label, place.memory_bytes, parts),),
            demand,
            budget,
            served.longest,
            tokens=held,
            blocks=None if budget is None else blocks(*how),
            block_size=BLOCK,
        )


ENGINE = Vllm()
