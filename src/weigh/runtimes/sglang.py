"""SGLang: what it lays out on its devices as it starts.

It loads the weights (the layers are vLLM's, `weigh.runtimes.fused`), and its pool of tokens gets what is then left of
a fraction of the memory that was free before (`mem_fraction_static`); activations and CUDA graphs take the rest.
Windows have a pool of their own, recurrent states too, and under data-parallel attention every group of ranks keeps its
own requests with whole heads.

Read: SGLang 0.5.6 (`srt/server_args.py: _handle_gpu_memory_settings`, `model_executor/model_runner.py:
profile_max_num_token, handle_max_mamba_cache, set_num_token_hybrid`, `mem_cache/memory_pool.py`), whose buffers have
one page more than tokens, for padded writes; and of drafts 0.5.12 and 0.5.23 too
(`model_executor/pool_configurator.py`, `managers/scheduler.py: init_model_worker`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh import dtypes
from weigh.errors import UsageError
from weigh.models.layout import CHUNKED, LATENT, SLIDING
from weigh.recipes.keeping import Keeping, keep
from weigh.recipes.settings import Text
from weigh.records import dataclass
from weigh.runtimes import additions, fused, methods, sharding
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
    from collections.abc import Mapping, Sequence
    from typing import Any

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
LATER = (DEFAULTS[0], (35, 4096, 48, 160), *DEFAULTS[2:])
"""The same of 0.5.23, whose largest step is no larger than the requests that were asked for."""
LARGEST = (16384, 512, 512)
PROMPTS = (
    *range(4, 33, 4),
    *range(48, 257, 16),
    *range(288, 513, 32),
    *range(576, 1025, 64),
    *range(1280, 4097, 256),
    *range(4608, 2**17, 512),
)
"""Tokens of prompts that are captured, up to a chunk."""
PROMPT, PROMPTS_OF_LATENT = 8, 1536
"""MiB that are kept free for each of them, and for all of them where keys and values are latent."""
RESERVED = 512
"""MiB that are kept free whatever else is."""
FOUR_BITS = {"fp4_e2m1": "nvfp4"}
"""Its name for four bits with a scale of a byte for each 16 numbers (`MHATokenToKVPoolFP4`)."""
DRAFTING = ("EAGLE", "EAGLE3", "NEXTN", "STANDALONE")
"""Ways to draft that keep keys and values of their own, for every token of the pool."""
DRAFTED = (3, 1, 4), (5, 4, 8)
"""Steps, branches and tokens of a draft where nobody says (`auto_choose_speculative_params`), of `FEW` and others."""
FEW = "deepseek_v2 deepseek_v3 deepseek_v32 gpt_oss glm4_moe bailing_moe bailing_moe_v2 pixtral".split()
DRAFTING_REQUESTS = 48
"""Requests at once where drafts are made, and nobody says."""
NO_HEADROOM = (0, 5, 12)
"""From here on, or somewhat before, the pool has no tokens besides for drafts that are not checked yet."""
BUDGETED = (0, 5, 23)
"""From here on, or somewhat before, drafts are loaded before the pool, and their cache is in its budget."""
LORA_RANK = 16
"""Rank of adapters where nobody says."""
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
    speculative_num_steps: int | None = None
    """Steps of a draft."""
    speculative_eagle_topk: int | None = None
    """Branches of a step."""
    speculative_algorithm: Text | None = None
    """How tokens are proposed: by EAGLE (NEXTN) with layers of the model's own where no draft is named, by NGRAM
    without any."""
    enable_lora: bool = False
    """Room for adapters beside linear layers."""
    lora_paths: Text | None = None
    """Adapters that are there from the start; naming one makes room."""
    max_lora_rank: int | None = None
    """Their rank at most; the largest of theirs where nobody says."""
    max_loras_per_batch: int = 8
    """Adapters at once."""
    lora_target_modules: Text | None = None
    """Which layers they may change: names, or "all"; those that the adapters change where nobody says."""
    enable_eplb: bool = False
    """Whole experts are moved between ranks, for all to be busy alike."""
    ep_num_redundant_experts: int | None = None
    """Experts of a layer that are there twice for it."""
    expert_distribution_recorder_buffer_size: int = 1000
    """Steps whose choices of experts are remembered for it."""
    moe_dense_tp_size: int | None = None
    """1 has feed-forwards without experts whole on every rank."""
    mamba_full_memory_ratio: float = STATES_TO_TOKENS
    """Memory of states for each byte of the pool of tokens."""
    max_mamba_cache_size: int | None = None
    """States, where nothing is kept for requests that begin alike."""
    mamba_ssm_dtype: Text = "float32"
    """Number format of the states' largest one."""
    disable_hybrid_swa_memory: bool = False
    """Windows keep every token."""
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
        self.served, self.job, self.options, self.place, self.version = served, job, options, place, version
        self.taken = [*Sglang.unread(version), *methods.stored_otherwise(served, "SGLang")]
        if options.enable_dp_attention and job.tensor % job.data:
            hint = "Data-parallel attention divides the ranks of --tensor."
            raise UsageError(f"{job.data} replicas cannot share {job.tensor} ranks", where="data", hint=hint)
        self.ranks = attention_ranks(job.tensor, job.data, options.enable_dp_attention)
        check_limits(served, job.context, self.ranks)
        check_cache(served, job.kv_dtype, "SGLang", tuple(FOUR_BITS))
        self._check()
        capability = None if place.device is None else place.device.compute_capability
        self.capability = capability
        chunk, graph = self._defaults()
        self.chunk = options.chunked_prefill_size or chunk
        if self.release >= BUDGETED:
            graph = min(graph, options.max_running_requests or graph)
        self.graph = 0 if options.disable_cuda_graph else options.cuda_graph_max_bs or graph

    def launch(self) -> Launch:
        rank = sharding.Rank(
            self.ranks,
            self.job.tensor,
            self.job.expert,
            stages=self.job.pipeline,
            redundant=self.options.ep_num_redundant_experts or 0,
            dense_whole=self.options.moe_dense_tp_size == 1,
        )
        settings = None if self.options.alloc_conf is None else AllocatorSettings.parse(self.options.alloc_conf)
        loaded = fused.loaded(self.served, rank, self.job.quantization, self.capability, settings=settings)
        weights, sums = loaded.reserved, loaded.weights + loaded.besides
        draft, drafted = self._draft(rank), self._draft_token_bytes()
        beside = self._slots(rank) + self._recorded()
        rest = self._rest(weights + beside + (draft if self.release >= BUDGETED else 0))
        state, states = self._states(rest)
        pools = _Pools(self.served, self.job, self.options, self.ranks, self.chunk)
        if self.release >= BUDGETED:
            pools.drafted = drafted
        elif drafted and self.release < NO_HEADROOM:
            pools.headroom = headroom(self.requests or DRAFTING_REQUESTS, *self.drafts)
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
            Part("draft model", WEIGHTS, draft, EXACT, "each tensor of a rank of the draft, or of a layer that drafts"),
            Part("adapters and records", WEIGHTS, beside, MODELLED, "A and B of every slot; choices of experts"),
            Part("KV cache", KV_CACHE, pages or cache, EXACT, "tokens of the pool and a page"),
            Part(
                "KV cache of the draft",
                KV_CACHE,
                0 if tokens is None else (tokens + self.options.page_size) * drafted,
                EXACT,
                "as many tokens as the pool has",
            ),
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
            weights=methods.title_of(self.served, self.job.quantization),
            kv_dtype=FOUR_BITS.get(self.job.kv_dtype),
            most_sequences=self.requests,
            routed=loaded.routed,
        )

    @property
    def release(self) -> tuple[int, ...]:
        """Its numbers; the newest that was read where they do not say which of 0.5 it is."""
        return self.version.numbers if len(self.version.numbers) > 2 else BUDGETED

    @property
    def algorithm(self) -> str:
        """How tokens are drafted; "" where they are not."""
        named = (self.options.speculative_algorithm or "").upper()
        return named or ("EAGLE" if self.served.draft is not None else "")

    @property
    def drafts(self) -> tuple[int, int, int]:
        """Steps, branches and tokens of a draft."""
        few = self.algorithm == "STANDALONE" or self.served.config.get("model_type") in FEW
        steps, branches, tokens = DRAFTED[0 if few else 1]
        if self.options.num_draft_tokens and not self.options.speculative_num_steps:
            steps, branches = self.options.num_draft_tokens - 1, 1
        steps = self.options.speculative_num_steps or steps
        branches = self.options.speculative_eagle_topk or branches
        return steps, branches, self.options.num_draft_tokens or tokens

    @property
    def requests(self) -> int | None:
        """Requests at once at most, where it is known before it starts."""
        drafting = DRAFTING_REQUESTS if self.algorithm in DRAFTING else None
        return self.options.max_running_requests or drafting

    def _draft_token_bytes(self) -> int:
        """Of a token in the draft's cache: all layers of a draft, or one like those of the model."""
        if self.algorithm not in DRAFTING:
            return 0
        if self.served.draft is not None:
            return token_bytes(self.served.draft.layers, self.served.dtype, self.job.kv_dtype, self.ranks)
        kept = [layer for layer in self.served.layers if layer.heads or layer.latent_width]
        return token_bytes(kept[-1:], self.served.dtype, self.job.kv_dtype, self.ranks)

    def _check(self) -> None:
        """What it refuses (`server_args.py`)."""
        if self.options.moe_dense_tp_size not in (None, 1):
            raise UsageError("can only be 1", where="moe_dense_tp_size", hint="Leave it out, or give 1.")
        if (self.options.ep_num_redundant_experts or self.options.enable_eplb) and not self.job.expert:
            what = "moves whole experts between ranks"
            raise UsageError(what, where="enable_eplb", hint="Add --ep-size.")

    def _slots(self, rank: sharding.Rank) -> int:
        options = self.options
        if not (options.enable_lora or options.lora_paths):
            return 0
        if options.max_lora_rank is None:
            why = "nobody says --max-lora-rank, and the adapters are not read"
            self.taken.append((f"adapters of rank {LORA_RANK}", why, "memory of their slots grows with it"))
        names = frozenset((options.lora_target_modules or "all").replace(",", " ").split())
        slots = additions.LoraSlots(options.max_loras_per_batch, options.max_lora_rank or LORA_RANK)
        return additions.lora_pool(self.served, rank, slots, names)

    def _recorded(self) -> int:
        """Bytes of the recorder that the balance of experts asks (`eplb/expert_distribution.py: _CircularBuffer`)."""
        if not self.options.enable_eplb:
            return 0
        counts = {one.block: one.experts for one in fused.matrices(self.served, sharding.Rank()) if one.experts}
        if not counts:
            raise UsageError("the model has no experts", where="enable_eplb", hint="Leave it out.")
        physical = max(counts.values()) + (self.options.ep_num_redundant_experts or 0)
        return 4 * self.options.expert_distribution_recorder_buffer_size * len(self.served.layers) * physical

    def _draft(self, rank: sharding.Rank) -> int:
        own = (self.options.speculative_algorithm or "").upper() in ("EAGLE", "NEXTN")
        if self.served.draft is None and own:
            return additions.mtp_layers(self.served, rank, self.job.quantization)
        if self.served.draft is None:
            return 0
        return fused.loaded(self.served.draft, sharding.Rank(self.ranks, self.job.tensor)).reserved

    def _defaults(self) -> tuple[int, int]:
        memory = self.place.memory_bytes
        if memory is None:
            return 4096, 160
        for below, chunk, few, many in LATER if self.release >= BUDGETED else DEFAULTS:
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
        return float(round((mib - self._kept(mib)) / mib, 3)) * vision_factor(self.served.config)

    def _kept(self, mib: int) -> float:
        """MiB for activations and graphs (`_handle_gpu_memory_settings`)."""
        kept = RESERVED + max(self.chunk, 2048) * 1.5 + self.graph * 2 + self.job.tensor * self.job.pipeline * 128
        if self.options.enable_dp_attention:
            kept += self.graph * self.job.data * (4.5 if self.graph > 300 else 3)
        if self._captures_prompts():
            latent = any(layer.kind == LATENT for layer in self.served.layers)
            kept += PROMPTS_OF_LATENT if latent else PROMPT * sum(size <= self.chunk for size in PROMPTS)
        if mib > 60 * 1024:
            kept = max(kept, 10 * 1024)
        if self.release >= BUDGETED or self.algorithm in ("", "NGRAM"):
            return kept
        return kept + 1024 * (6 if self.algorithm == "STANDALONE" else 2 if self.release < NO_HEADROOM else 4)

    def _captures_prompts(self) -> bool:
        """Whether prompts run as graphs too (`_handle_piecewise_cuda_graph`, `cuda_graph_hook.py`)."""
        options, device = self.options, self.place.device
        off = options.disable_cuda_graph or self.job.pipeline > 1 or "vision_config" in self.served.config
        if self.release < NO_HEADROOM or off or (device is not None and device.maker != "NVIDIA"):
            return False
        others = options.enable_dp_attention or options.enable_lora or options.lora_paths or options.enable_eplb
        return self.release >= BUDGETED or not others

    def _rest(self, weights: int) -> int | None:
        """Bytes for the pools."""
        memory = self.place.memory_bytes
        return None if memory is None else int((memory - CONTEXT) * self.fraction) - weights

    def _states(self, rest: int | None) -> tuple[int, int]:
        """Bytes of one request's states, and of all that there is room for."""
        recurrence = dtypes.get(self.options.mamba_ssm_dtype)
        each = state_bytes(self.served.layers, 0, self.served.dtype, self.ranks, recurrence)["recurrent_state"]
        drafts = 1 + (self.options.num_draft_tokens or 0)
        if not each or rest is None:
            return each, 0
        slots = self.options.max_mamba_cache_size or self.options.max_running_requests or 512
        if not self.options.disable_radix_cache:
            ratio = self.options.mamba_full_memory_ratio
            slots = int(rest * ratio / (1 + ratio)) // each // drafts
        return each, (slots * drafts + 1) * each


class _Pools:
    """The pools of a rank: one for layers that keep every token, and one for windows."""

    def __init__(self, served: Served, job: ServeJob, options: SglangOptions, ranks: int, chunk: int) -> None:
        layers = served.layers if job.pipeline == 1 else served.layers[: -(-len(served.layers) // job.pipeline)]
        kinds = () if options.disable_hybrid_swa_memory else (SLIDING, CHUNKED)
        windows = [layer for layer in layers if layer.kind in kinds]
        full = [layer for layer in layers if layer.kind not in kinds]
        self.full = token_bytes(full, served.dtype, job.kv_dtype, ranks)
        self.windows = token_bytes(windows, served.dtype, job.kv_dtype, ranks)
        self.window = max((layer.window or 0 for layer in windows), default=0)
        self.ratio = options.swa_full_tokens_ratio if self.windows and self.full else 1.0
        self.page, self.chunk = options.page_size, chunk
        self.drafted, self.headroom = 0, 0

    @property
    def bytes_per_token(self) -> int:
        """Of a token of the full pool, with what the windows' pool has for it."""
        return self.full + int(self.windows * self.ratio)

    def tokens(self, rest: int) -> int:
        """Whole pages in so many bytes."""
        each = self.bytes_per_token + self.drafted
        found = max(0, rest) // each if each else 0
        return (found + self.headroom) // self.page * self.page if found else 0

    def demand(self, context: int, users: int) -> int:
        """Bytes that so many requests with so many tokens need: of the pool that is full first."""
        pages = -(-context // self.page) * self.page
        if not (self.windows and self.full):
            seen = min(pages, self.window + self.chunk) if self.windows else pages
            return seen * users * self.bytes_per_token
        tokens = max(pages, int(min(pages, self.window + self.chunk) / self.ratio))
        return tokens * users * self.bytes_per_token


def vision_factor(config: Mapping[str, Any]) -> float:
    """What becomes of the fraction in models that see, by the size of their encoder (`adjust_mem_fraction_for_vlm`).

    >>> round(vision_factor({"vision_config": {"num_hidden_layers": 27, "hidden_size": 1152}}), 4)
    0.9097
    """
    vision = config.get("vision_config")
    if not isinstance(vision, dict):
        return 1.0
    size = int(vision.get("num_hidden_layers") or 24) * int(vision.get("hidden_size") or 1024) ** 2
    return 0.95 * max(0.8, min(1.05, 1 - 0.1 * (size / (24 * 1024**2) - 1)))


def headroom(requests: int, steps: int, branches: int, tokens: int) -> int:
    """Tokens of the pool for drafts that are made and checked, above those that the memory has room for.

    >>> headroom(768, 3, 1, 4)
    5476
    """
    return requests * (steps * branches + tokens) + 100


def token_bytes(layers: Sequence[LayerCache], dtype: DType, kv_dtype: str, ranks: int) -> int:
    """Bytes of a token in all these layers; an indexer keeps eight bits a number and a scale for each 128."""
    kept = keep(layers, Keeping(1, kv_dtype=FOUR_BITS.get(kv_dtype, kv_dtype), tensor=ranks), dtype)
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


def state_bytes(
    layers: Sequence[LayerCache], requests: int, dtype: DType, tensor: int = 1, recurrence: DType | None = None
) -> dict[str, int]:
    """Bytes of the states of so many running requests and one slot more, by name: `conv` without its newest column."""
    found = {"recurrent_state_conv": 0, "recurrent_state_ssm": 0}
    for layer in layers:
        for state in layer.states:
            if state.name == "convolution":
                width, kernel = state.shape
                found["recurrent_state_conv"] += dtype.num_bytes(width * (kernel - 1))
            else:
                kept = recurrence if recurrence is not None and state.dtype is not None else state.dtype or dtype
                found["recurrent_state_ssm"] += kept.num_bytes(state.elements)
    found = {name: (requests + 1) * size // tensor for name, size in found.items()}
    return {**found, "recurrent_state": sum(found.values())}


def attention_ranks(tensor: int, data: int, enable_dp_attention: bool) -> int:
    """Ranks that share the heads: data-parallel attention divides the tensor group.

    >>> attention_ranks(16, 4, True), attention_ranks(16, 4, False)
    (4, 16)
    """
    return tensor // data if enable_dp_attention else tensor


ENGINE = Sglang()
