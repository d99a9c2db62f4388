"""SGLang: what it lays out on its devices as it starts.

It loads the weights (the layers are vLLM's, `weigh.runtimes.fused`), and its pool of tokens gets what is then left of
a fraction of the memory that was free before (`mem_fraction_static`); activations and CUDA graphs take the rest.
Windows have a pool of their own, recurrent states too, and under data-parallel attention every group of ranks keeps its
own requests with whole heads.

Read: SGLang 0.5.6 (`srt/server_args.py: _handle_gpu_memory_settings`, `model_executor/model_runner.py:
profile_max_num_token, handle_max_mamba_cache, set_num_token_hybrid`, `mem_cache/memory_pool.py`), whose buffers have
one page more than tokens, for padded writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.errors import UsageError
from weigh.models.layout import CHUNKED, LATENT, SLIDING
from weigh.recipes.keeping import Keeping, keep
from weigh.recipes.settings import Text
from weigh.records import dataclass
from weigh.runtimes import fused, methods, sharding
from weigh.runtimes.engine import (
    ACTIVATIONS,
    ASSUMED,
    EXACT,
    KV_CACHE,
    MODELLED,
    OVERHEAD,
    STATES,
    WEIGHTS,
    Engine,
    Launch,
    Part,
    Place,
    Served,
    ServeJob,
    Share,
    Version,
    check_cache,
    check_limits,
)
from weigh.trace.allocator_settings import AllocatorSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from weigh.dtypes import DType
    from weigh.models.layout import LayerCache

CONTEXT = 500 * 2**20
"""What the driver's context and NCCL have before the first measure of free memory."""
GIB = 2**30
DEFAULTS = (
    (20, 2048, 8, 8),
    (35, 2048, 24, 80),
    (60, 4096, 32, 160),
    (160, 8192, 256, 512),
)
"""Below so many GiB of memory: tokens of a chunk of prompt, and requests of the largest CUDA graph with fewer than four
ranks and with more."""
LARGEST = (16384, 512, 512)
RESERVED = 512
"""MiB that are kept free whatever else is."""
STATES_TO_TOKENS = 0.9
"""Memory of states for each byte of the pool of tokens (`mamba_full_memory_ratio`)."""


@dataclass(frozen=True, slots=True)
class SglangOptions:
    """Settings of `sglang.launch_server`, in its words."""

    mem_fraction_static: float | None = None
    """The fraction of the memory that weights and pools have; what chunks and graphs leave where nobody says."""
    max_total_tokens: int | None = None
    """Tokens of the pool at most."""
    max_running_requests: int | None = None
    """Requests at once at most."""
    chunked_prefill_size: int | None = None
    """Tokens of a chunk of prompt."""
    cuda_graph_max_bs: int | None = None
    """Requests of the largest captured step."""
    disable_cuda_graph: bool = False
    """No CUDA graphs."""
    page_size: int = 1
    """Tokens of a page."""
    enable_dp_attention: bool = False
    """Replicas of attention share the ranks: each has tensor / data of them."""
    disable_radix_cache: bool = False
    """Nothing is kept for requests that begin alike."""
    swa_full_tokens_ratio: float = 0.8
    """Tokens of the windows' pool for each of the other."""
    num_draft_tokens: int | None = None
    """Tokens that a draft proposes."""
    alloc_conf: Text | None = None
    """How PyTorch's allocator is set (PYTORCH_CUDA_ALLOC_CONF): "expandable_segments:True"."""


class Sglang(Engine):
    """SGLang."""

    name = "sglang"
    versions = ("0.5",)
    options = SglangOptions

    def devices(self, job: ServeJob, options: SglangOptions) -> int:
        """Replicas of attention share the ranks."""
        return job.tensor * job.pipeline if options.enable_dp_attention else job.ranks

    def launch(self, served: Served, job: ServeJob, options: SglangOptions, place: Place, version: Version) -> Launch:
        """Weights, then the pools in what the fraction leaves."""
        return _Start(served, job, options, place, version).launch()


class _Start:
    def __init__(self, served: Served, job: ServeJob, options: SglangOptions, place: Place, version: Version) -> None:
        self.served, self.job, self.options, self.place = served, job, options, place
        self.taken = [*Sglang.unread(version), *methods.stored_otherwise(served, "SGLang")]
        if options.enable_dp_attention and job.tensor % job.data:
            hint = "Data-parallel attention divides the ranks of --tensor."
            raise UsageError(f"{job.data} replicas cannot share {job.tensor} ranks", where="data", hint=hint)
        self.ranks = attention_ranks(job.tensor, job.data, options.enable_dp_attention)
        check_limits(served, job.context, self.ranks)
        check_cache(served, job.kv_dtype, "SGLang")
        capability = None if place.device is None else place.device.compute_capability
        self.capability = capability
        chunk, graph = self._defaults()
        self.chunk = options.chunked_prefill_size or chunk
        self.graph = 0 if options.disable_cuda_graph else options.cuda_graph_max_bs or graph

    def launch(self) -> Launch:
        experts_over = self.job.tensor if self.options.enable_dp_attention else self.job.tensor * self.job.data
        rank = sharding.Rank(self.ranks, experts_over, self.job.expert, 0, self.job.pipeline)
        settings = None if self.options.alloc_conf is None else AllocatorSettings.parse(self.options.alloc_conf)
        loaded = fused.loaded(self.served, rank, self.job.quantization, self.capability, settings=settings)
        weights, sums = loaded.reserved, loaded.weights + loaded.besides
        draft = self._draft()
        rest = self._rest(weights + draft)
        state, states = self._states(rest)
        pools = _Pools(self.served, self.job, self.options, self.ranks, self.chunk)
        tokens = None if rest is None else pools.tokens(rest - states)
        if tokens is not None and self.options.max_total_tokens is not None:
            tokens = min(tokens, self.options.max_total_tokens)
        supply = None if tokens is None or rest is None else tokens * pools.bytes_per_token + states or min(0, rest)
        users = self.job.concurrency
        cache = pools.demand(self.job.context or self.served.longest or 1, users) if tokens is None else 0
        pages = 0 if tokens is None else (tokens + self.options.page_size) * pools.bytes_per_token
        parts = [
            Part("weights", WEIGHTS, sums, EXACT, "each tensor of a rank, fused and padded"),
            Part(
                "ends of segments", WEIGHTS, weights - sums, MODELLED, "what PyTorch's allocator has reserved besides"
            ),
            Part("draft model", WEIGHTS, draft, EXACT, "each tensor of a rank of the draft"),
            Part("KV cache", KV_CACHE, pages or cache, EXACT, "tokens of the pool and a page"),
            Part("recurrent states", STATES, states or state * users, EXACT, "a slot for each running request"),
        ]
        if self.place.memory_bytes is not None:
            parts.append(Part("context and NCCL", OVERHEAD, CONTEXT, ASSUMED, "taken before the first measure"))
            left = max(0, self.place.memory_bytes - sum(part.num_bytes for part in parts))
            why = "left to activations and graphs: what the fraction does not give away"
            parts.append(Part("activations and graphs", ACTIVATIONS, left, MODELLED, why))
        devices = ENGINE.devices(self.job, self.options)
        label = "GPU 0" if devices == 1 else f"GPU 0 to {devices - 1}"
        share = Share(label, self.place.memory_bytes, tuple(part for part in parts if part.num_bytes))
        replicas = self.job.data
        return Launch(
            (share,),
            lambda context, users: pools.demand(context, -(-users // replicas)) + state * -(-users // replicas),
            supply,
            self.served.longest,
            tokens=tokens,
            block_size=self.options.page_size,
            printed={"weights": weights} | ({} if tokens is None else {"kv_cache_tokens": tokens}),
            assumptions=tuple(self.taken),
            most_sequences=self.options.max_running_requests,
            routed=loaded.routed,
        )

    def _draft(self) -> int:
        if self.served.draft is None:
            return 0
        return fused.loaded(self.served.draft, sharding.Rank(self.ranks, self.job.tensor)).reserved

    def _defaults(self) -> tuple[int, int]:
        memory = self.place.memory_bytes
        if memory is None:
            return 4096, 160
        for below, chunk, few, many in DEFAULTS:
            if memory < below * GIB:
                return chunk, few if self.job.tensor < 4 else many
        return LARGEST[0], LARGEST[1]

    @property
    def fraction(self) -> float:
        """`mem_fraction_static`, or what is taken in its place."""
        memory = self.place.memory_bytes
        if self.options.mem_fraction_static is not None:
            return self.options.mem_fraction_static
        if memory is None:
            return 0.88
        mib = memory // 2**20
        kept = RESERVED + max(self.chunk, 2048) * 1.5 + self.graph * 2 + self.job.tensor * self.job.pipeline * 128
        if self.options.enable_dp_attention:
            kept += self.graph * self.job.data * (4.5 if self.graph > 300 else 3)
        if mib > 60 * 1024:
            kept = max(kept, 10 * 1024)
        if self.served.draft is not None or self.options.num_draft_tokens:
            kept += 2 * 1024
        return float(round((mib - kept) / mib, 3))

    def _rest(self, weights: int) -> int | None:
        """Bytes for the pools."""
        memory = self.place.memory_bytes
        return None if memory is None else int((memory - CONTEXT) * self.fraction) - weights

    def _states(self, rest: int | None) -> tuple[int, int]:
        """Bytes of one request's states, and of all that there is room for."""
        each = sum(state_bytes(self.served.layers, 0, self.served.dtype, self.ranks).values()) // 2
        drafts = 1 + (self.options.num_draft_tokens or 0)
        if not each or rest is None:
            return each, 0
        slots = self.options.max_running_requests or 512
        if not self.options.disable_radix_cache:
            slots = int(rest * STATES_TO_TOKENS / (1 + STATES_TO_TOKENS)) // each // drafts
        return each, (slots * drafts + 1) * each


class _Pools:
    """The pools of a rank: one for layers that keep every token, and one for windows."""

    def __init__(self, served: Served, job: ServeJob, options: SglangOptions, ranks: int, chunk: int) -> None:
        layers = served.layers if job.pipeline == 1 else served.layers[: -(-len(served.layers) // job.pipeline)]
        windows = [layer for layer in layers if layer.kind in (SLIDING, CHUNKED)]
        full = [layer for layer in layers if layer.kind not in (SLIDING, CHUNKED)]
        self.full = token_bytes(full, served.dtype, job.kv_dtype, ranks)
        self.windows = token_bytes(windows, served.dtype, job.kv_dtype, ranks)
        self.window = max((layer.window or 0 for layer in windows), default=0)
        self.ratio = options.swa_full_tokens_ratio if self.windows and self.full else 1.0
        self.page, self.chunk = options.page_size, chunk

    @property
    def bytes_per_token(self) -> int:
        """Of a token of the full pool, with what the windows' pool has for it."""
        return self.full + int(self.windows * self.ratio)

    def tokens(self, rest: int) -> int:
        """Whole pages in so many bytes."""
        each = self.bytes_per_token
        return max(0, rest) // each // self.page * self.page if each else 0

    def demand(self, context: int, users: int) -> int:
        """Bytes that so many requests with so many tokens need: of the pool that is full first."""
        pages = -(-context // self.page) * self.page
        if not (self.windows and self.full):
            seen = min(pages, self.window + self.chunk) if self.windows else pages
            return seen * users * self.bytes_per_token
        tokens = max(pages, int(min(pages, self.window + self.chunk) / self.ratio))
        return tokens * users * self.bytes_per_token


def token_bytes(layers: Sequence[LayerCache], dtype: DType, kv_dtype: str, ranks: int) -> int:
    """Bytes of a token in all these layers; an indexer keeps eight bits a number and a scale for each 128."""
    kept = keep(layers, Keeping(1, kv_dtype=kv_dtype, tensor=ranks), dtype)
    total = 0
    for one in kept:
        total += one.bytes_per_token
        if one.layer.kind == LATENT and one.layer.index_width:
            total += one.layer.index_width + 4 * -(-one.layer.index_width // 128)
            total -= dtype.num_bytes(one.layer.index_width)
    return total


def pool_bytes(layers: Sequence[LayerCache], tokens: int, page: int, dtype: DType, tensor: int = 1) -> int:
    """Bytes of the pool of one rank; `tensor` is the ranks that share the heads."""
    return (tokens + page) * token_bytes(layers, dtype, "auto", tensor)


def state_bytes(layers: Sequence[LayerCache], requests: int, dtype: DType, tensor: int = 1) -> dict[str, int]:
    """Bytes of the states of so many running requests and one slot more, by name: `conv` without its newest column."""
    found = {"recurrent_state_conv": 0, "recurrent_state_ssm": 0}
    for layer in layers:
        for state in layer.states:
            if state.name == "convolution":
                width, kernel = state.shape
                found["recurrent_state_conv"] += dtype.num_bytes(width * (kernel - 1))
            else:
                found["recurrent_state_ssm"] += (state.dtype or dtype).num_bytes(state.elements)
    found = {name: (requests + 1) * size // tensor for name, size in found.items()}
    return {**found, "recurrent_state": sum(found.values())}


def attention_ranks(tensor: int, data: int, enable_dp_attention: bool) -> int:
    """Ranks that share the heads: data-parallel attention divides the tensor group.

    >>> attention_ranks(16, 4, True), attention_ranks(16, 4, False)
    (4, 16)
    """
    return tensor // data if enable_dp_attention else tensor


ENGINE = Sglang()
