"""vLLM: what it lays out on its devices as it starts.

It loads the weights, runs the largest step that it may have to (`weigh.runtimes.profiling`), and gives what is left of
its share of the memory to the cache (`weigh.runtimes.paged`). CUDA graphs come afterwards, out of what is not its
share; from 0.21 on an estimate of them is taken off the cache first.

Read: 0.6.4, 0.8.5, 0.9.2, 0.12, 0.17, 0.21, 0.22, 0.25 (`v1/worker/gpu_worker.py: determine_available_memory`,
`worker/worker.py`, `utils/mem_utils.py`, `engine/arg_utils.py`, `config/cache.py`, `config/compilation.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from weigh import dtypes, formats
from weigh.errors import UsageError
from weigh.kernels.workspaces import workspace_bytes
from weigh.models.layout import CHUNKED, CROSS, LATENT, SLIDING
from weigh.recipes.settings import Text
from weigh.records import dataclass, replace
from weigh.runtimes import additions, fused, methods, paged, profiling, sharding
from weigh.runtimes.engine import (
    ACTIVATIONS,
    ASSUMED,
    EXACT,
    KV_CACHE,
    MODELLED,
    OVERHEAD,
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
    from collections.abc import Iterator

    from weigh.dtypes import DType

LATER_SHARE = (0, 21)
"""From here on it takes 0.92 of a device where nobody says, 0.9 before; and graphs come off the cache."""
FILTERS_IN_PLACE = (0, 17)
"""From here on the sampler filters with a kernel of its own, and sorts no more."""
FREE_MEMORY = (0, 7, 3), (0, 25)
"""From the first on and before the second, weights on AMD's devices are the drop of the device's free memory: segments
of the allocator, those it has cached too (0.9.2, 0.10, 0.14 were read, and 0.25, which asks the allocator again)."""
CALIBRATED = (0, 17)
"""From here on a checkpoint's own scheme of keys and values is followed."""
CALIBRATION = ("kv_cache_scheme", "kv_cache_quant_algo")
"""Where compressed-tensors and ModelOpt say it (`utils/torch_utils.py: get_kv_cache_quant_algo_string`)."""
KV_FORMATS = ("nvfp4", *paged.PER_HEAD, paged.DS_MLA)
"""What it keeps keys and values in beside the usual formats."""
FOUR_BITS = 10
"""Compute capability of devices with kernels for keys and values in nvfp4 (`attention/backends/flashinfer.py`)."""
POOLING = frozenset("pooling embed embedding classify reward score".split())
"""Words of `--runner`, `--task` and `--convert` for models whose output layer is not made."""
LARGE_DEVICE, LARGEST_DEVICE = 70 * 2**30, 160 * 2**30
"""Devices with more, A100 and GB10 apart, take larger steps, and from 0.33 on still larger ones."""
NO_MORE_THAN_REQUESTS = (0, 12)
"""From here on a step has no more tokens than its requests can have (0.14 was read, and 0.10, which does not ask)."""
NON_TORCH, NON_TORCH_RANKS = 60 * 2**20, 200 * 2**20
"""What the profiling run finds outside of PyTorch's memory: kernels as they are loaded, and NCCL's buffers."""
GRAPH_BYTES = 300_000
"""Memory of a captured piece of a graph: the median of 17 published logs, of which 11 are within 1.3 times of it and 13
within 1.7; one of the others is AMD's. No source says what the driver keeps of a graph."""
BOTH_MODES = (0, 11)
"""From here on steps of decoding are captured whole besides (`config/vllm.py: FULL_AND_PIECEWISE`)."""
WIDER_STEPS = (0, 12)
"""From here on every sixteenth size beyond 256 is captured, every eighth before."""
SIZES = (1, 2, 4)
"""The first sizes that are captured, then every eighth."""
WHOLE, PIECES = "FULL", "PIECEWISE"
"""Parts of the names of modes: decoding captured whole, and steps of any kind cut at every attention."""


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """Settings of `vllm serve`, in its words."""

    gpu_memory_utilization: float | None = None
    """The share of a device's memory that it may take; 0.92, before 0.21 0.9, where nobody says."""
    kv_cache_memory_bytes: int | None = None
    """Bytes of the cache, in place of what the share leaves."""
    num_gpu_blocks_override: int | None = None
    """Blocks of the cache, in place of what the memory allows."""
    max_num_seqs: int | None = None
    """Requests in a step at most; 256, or 1,024 on a large device, where nobody says."""
    max_num_batched_tokens: int | None = None
    """Tokens in a step at most; 2,048, or 8,192 on a large device, where nobody says."""
    enable_chunked_prefill: Text = "auto"
    """Prompts may be cut over steps: "on" or "off"; "auto" is what the release does."""
    performance_mode: Text = "balanced"
    """ "throughput" doubles the largest step."""
    block_size: int | None = None
    """Tokens of a block of the cache."""
    enforce_eager: bool = False
    """No CUDA graphs, no compiled code."""
    max_cudagraph_capture_size: int | None = None
    """Tokens of the largest step that is captured as a graph."""
    cudagraph_mode: Text = "auto"
    """What is captured: "NONE", "PIECEWISE", "FULL", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE"."""
    enable_prefix_caching: bool = True
    """Keep blocks for requests that begin alike."""
    disable_hybrid_kv_cache_manager: bool = False
    """Windows keep every token."""
    enable_lora: bool = False
    """Room for adapters beside every layer."""
    max_loras: int = 1
    """Adapters at once."""
    max_lora_rank: int = 16
    """Their rank at most."""
    num_speculative_tokens: int | None = None
    """Tokens that a draft proposes."""
    speculative_method: Text | None = None
    """How they are proposed: "mtp" by layers of the model's own, "draft_model" by another one, "ngram" by none."""
    runner: Text = "auto"
    """ "pooling" makes embeddings, without the output layer."""
    task: Text = "auto"
    """What older releases call it: "embed", "classify", "reward", "score" are pooling."""
    convert: Text = "auto"
    """What is made of a model that writes: "embed", "classify", "reward" are pooling."""
    mm_encoder_tp_mode: Text = "weights"
    """ "data" has the parts that see or hear whole on every rank."""
    cpu_offload_gb: float = 0.0
    """GiB of weights on each rank that stay in the host's memory."""
    language_model_only: bool = False
    """The parts that see or hear are not loaded."""
    decode_context_parallel_size: int = 1
    """Ranks that share a request's tokens, of those that share the heads."""
    enable_eplb: bool = False
    """Whole experts are moved between ranks, for all to be busy alike."""
    num_redundant_experts: int | None = None
    """Experts of a layer that are there twice for it."""
    eplb_window_size: int = 1000
    """Steps whose choices of experts are remembered for it."""
    mamba_cache_dtype: Text = "auto"
    """Number format of recurrent layers' states; "auto" is the model's."""
    mamba_ssm_cache_dtype: Text = "auto"
    """That of their largest one; "auto" is what the config says, or the other's."""
    disable_sliding_window: bool = False
    """Requests are as long as a window at most, and every layer keeps them whole."""
    alloc_conf: Text | None = None
    """How PyTorch's allocator is set (PYTORCH_CUDA_ALLOC_CONF): "expandable_segments:True"."""


class Vllm(Engine):
    """vLLM."""

    name = "vllm"
    versions = ("0.6.4", "0.8.5", "0.9.2", "0.12", "0.17", "0.21", "0.22", "0.25")
    options = VllmOptions

    def launch(self, served: Served, job: ServeJob, options: VllmOptions, place: Place, version: Version) -> Launch:
        """Weights, the profiling run, and the cache in what is left."""
        return _Start(served, job, options, place, version).launch()


LEAST_CAPABILITY = {"awq": (7, 5), "bitsandbytes": (7, 0), "fp8": (7, 5), "nvfp4": (7, 5), "w8a8": (7, 5)}
"""Of a device, below which no release has kernels for a method. A release's own figure may be higher: fp8 and nvfp4
asked for 8.0."""


class _Start:
    def __init__(self, served: Served, job: ServeJob, options: VllmOptions, place: Place, version: Version) -> None:
        self.served, self.job, self.options, self.place, self.version = served, job, options, place, version
        self.device = place.device
        self.capability = None if place.device is None else place.device.compute_capability
        self.taken: list[tuple[str, str, str]] = [*Vllm.unread(version), *methods.stored_otherwise(served, "vLLM")]
        self.longest = job.context or served.longest
        self.cut = self._cut()
        self.kv_dtype = job.kv_dtype if job.kv_dtype != "auto" else _calibrated(served, version)
        check_limits(served, job.context, job.tensor)
        check_cache(served, job.kv_dtype, "vLLM", KV_FORMATS, reads=True)
        if self.kv_dtype == "nvfp4" and self.capability is not None and self.capability[0] != FOUR_BITS:
            hint = "Take fp8, or a device of compute capability 10."
            raise UsageError("vLLM has no kernels for nvfp4 on this device", where="kv_dtype", hint=hint)
        self._check_kernels()
        self._check_ranks()
        self.utilization = options.gpu_memory_utilization or (0.92 if version.numbers >= LATER_SHARE else 0.9)
        if not 0 < self.utilization <= 1:
            raise UsageError(
                f"is {self.utilization}", where="gpu_memory_utilization", hint="It must be above 0 and at most 1."
            )
        self.step_tokens, self.requests = self._step()
        self.routed = 0

    def launch(self) -> Launch:
        stages = [self._stage(stage) for stage in range(self.job.pipeline)]
        pools = [self._pool(stage) for stage in range(self.job.pipeline)]
        budgets = [self._budget(parts) for parts in stages]
        blocks = self._blocks(pools, budgets)
        tightest = self._tightest(pools, budgets)
        supply = None if blocks is None else blocks * pools[tightest].block_bytes or min(0, budgets[tightest] or 0)
        shares = tuple(
            Share(self._label(stage), self.place.memory_bytes, tuple(self._parts(stages[stage], pools[stage], blocks)))
            for stage in range(self.job.pipeline)
        )
        pool = pools[tightest]
        longest = self.longest or 1
        held = None if supply is None else pool.tokens(supply, longest)
        return Launch(
            self._together(shares),
            lambda context, users: pool.demand(context, -(-users // self.job.data)),
            supply,
            self.cut or self.served.longest,
            tokens=held,
            blocks=blocks,
            block_size=pool.block,
            printed=self._printed(stages[tightest], budgets[tightest], held, blocks),
            assumptions=tuple(self.taken),
            weights=methods.title_of(self.served, self.job.quantization),
            kv_dtype=paged.NEAREST.get(self.kv_dtype),
            most_sequences=self.requests * self.job.data,
            routed=self.routed,
        )

    # -- what is taken before the cache
    def _stage(self, stage: int) -> list[Part]:
        """The parts of a rank of a pipeline stage, without the cache."""
        rank = replace(
            sharding.rank_of(self.job, stage),
            redundant=self.options.num_redundant_experts or 0,
            towers_whole=self.options.mm_encoder_tp_mode == "data",
        )
        found = self._loaded(rank)
        self.routed += found.routed
        offloaded = min(found.weights, int(self.options.cpu_offload_gb * 2**30))
        ends = "what PyTorch's allocator does not cut off its blocks"
        parts = [
            Part("weights", WEIGHTS, found.weights - offloaded, EXACT, "each tensor of a rank, fused and padded"),
            Part("buffers", WEIGHTS, found.besides, EXACT, "rotary tables, scales of attention"),
            Part("ends of blocks", WEIGHTS, self._counted(found) - found.weights - found.besides, MODELLED, ends),
        ]
        parts += self._slots(rank)
        if self.options.enable_eplb:
            size = additions.balancing(self.served, found, self.options)
            why = "loads of the last steps, where experts are, and room for a layer's that move"
            parts.append(Part("balance of experts", WEIGHTS, size, MODELLED, why))
        parts += self._drafts(rank)
        parts.append(self._activations(rank))
        ranks = self.job.ranks > 1
        size, why = (NON_TORCH_RANKS, "kernels and NCCL") if ranks else (NON_TORCH, "kernels as they are loaded")
        parts.append(Part("outside of PyTorch", OVERHEAD, size, ASSUMED, f"{why}: 0.01 to 0.2 GiB in published logs"))
        return parts

    def _counted(self, found: fused.Loaded) -> int:
        """What loading takes, as the log has it (`platforms/cuda.py, rocm.py: get_current_memory_usage`)."""
        is_amd = self.device is not None and self.device.maker == "AMD"
        if is_amd and FREE_MEMORY[0] <= self.version.numbers < FREE_MEMORY[1]:
            return found.with_cache
        return found.allocated

    def _loaded(self, rank: sharding.Rank) -> fused.Loaded:
        settings = None if self.options.alloc_conf is None else AllocatorSettings.parse(self.options.alloc_conf)
        how = (self.job.quantization, self.capability, self._is_pooling())
        return fused.loaded(self.served, rank, *how, settings, is_blind=self.options.language_model_only)

    def _is_pooling(self) -> bool:
        return not {self.options.runner, self.options.task, self.options.convert}.isdisjoint(POOLING)

    def _slots(self, rank: sharding.Rank) -> list[Part]:
        if not self.options.enable_lora:
            return []
        slots = additions.LoraSlots(self.options.max_loras, self.options.max_lora_rank)
        size = additions.lora_slots(self.served, rank, slots, self.step_tokens)
        return [Part("LoRA slots", WEIGHTS, size, MODELLED, "empty adapters beside every linear layer and the head")]

    def _drafts(self, rank: sharding.Rank) -> list[Part]:
        if self.options.speculative_method == "mtp":
            size = additions.mtp_layers(self.served, rank, self.job.quantization)
            return [Part("drafting layer", WEIGHTS, size, MODELLED, "a block with attention and one more product")]
        if self.served.draft is None:
            return []
        found = fused.loaded(self.served.draft, sharding.Rank(self.job.tensor, self.job.tensor))
        return [Part("draft model", WEIGHTS, found.allocated, EXACT, "each tensor of a rank of the draft")]

    def _activations(self, rank: sharding.Rank) -> Part:
        config, numbers = self.served.text_config, self.version.numbers
        capability = ".".join(map(str, self.capability or (8, 0)))
        form = methods.form_of(self.served, self.job.quantization)
        step = profiling.Step(
            self.step_tokens,
            self.requests,
            self.served.hidden,
            int(config["vocab_size"]),
            self.served.dtype,
            compiled=not self.options.enforce_eager and numbers >= paged.V1,
            sorts=numbers < FILTERS_IN_PLACE,
            ranks=rank.tensor,
            experts_per_token=self.served.experts_per_token,
            workspace=workspace_bytes(capability),
            chunk=16 * 1024 if numbers >= (0, 10) else 64 * 1024,
            dequantizes=form is not None and self.job.quantization == "awq",
        )
        found = profiling.peak(step, fused.matrices(self.served, rank))
        why = (
            f"the profiling run of {step.tokens:,} tokens and {step.requests} requests, at {found.what}: {found.alive}"
        )
        reads = any(layer.kind == CROSS for layer in self.served.layers)
        if reads or self._sees():
            what = "the encoder takes no more than the language model's step"
            self.taken.append((what, "its own run is not modelled", "the cache can be smaller by the encoder's peak"))
        return Part("activations of the largest step", ACTIVATIONS, found.num_bytes, MODELLED, why)

    # -- the cache
    def _pool(self, stage: int) -> paged.Pool:
        layers = self.served.layers
        if self.job.pipeline > 1:
            here = sharding.stage_layers(len(layers), self.job.pipeline)[stage]
            layers = layers[here.start : here.stop]
        if self.served.draft is not None:
            layers = (*layers, *self.served.draft.layers)
        options = self.options
        mtp = 1 if options.speculative_method == "mtp" else 0
        keeps = paged.Keeps(
            self.served.dtype,
            self.kv_dtype,
            self.job.tensor,
            options.decode_context_parallel_size,
            options.block_size or paged.BLOCK,
            self.version.numbers,
            self._state_dtype(),
            self._convolution_dtype(),
            self.step_tokens,
            options.num_speculative_tokens or 0,
            mtp,
            hybrid=not (options.disable_hybrid_kv_cache_manager or options.disable_sliding_window),
            prefix_caching=options.enable_prefix_caching,
        )
        return paged.pool(layers, keeps)

    def _budget(self, parts: list[Part]) -> int | None:
        """Bytes of a rank for its cache."""
        if self.options.kv_cache_memory_bytes is not None:
            return self.options.kv_cache_memory_bytes
        if self.place.memory_bytes is None:
            return None
        taken = sum(part.num_bytes for part in parts)
        is_amd = self.device is not None and self.device.maker == "AMD"
        if self.version.numbers >= LATER_SHARE and not is_amd:
            taken += self._graphs().num_bytes
        return int(self.place.memory_bytes * self.utilization) - taken

    def _blocks(self, pools: list[paged.Pool], budgets: list[int | None]) -> int | None:
        """As many as every rank has room for."""
        if self.options.num_gpu_blocks_override is not None:
            return self.options.num_gpu_blocks_override
        found = [pool.blocks(budget) for pool, budget in zip(pools, budgets, strict=True) if budget is not None]
        return min(found, default=None)

    def _tightest(self, pools: list[paged.Pool], budgets: list[int | None]) -> int:
        if budgets[0] is None:
            return max(range(len(pools)), key=lambda stage: pools[stage].block_bytes)
        return min(range(len(pools)), key=lambda stage: pools[stage].blocks(budgets[stage] or 0))

    def _parts(self, parts: list[Part], pool: paged.Pool, blocks: int | None) -> Iterator[Part]:
        yield from parts
        if blocks is not None:
            yield Part("KV cache", KV_CACHE, blocks * pool.block_bytes, EXACT, "whole blocks in what the share leaves")
        else:
            longest = self.longest or 1
            size = pool.demand(longest, -(-self.job.concurrency // self.job.data))
            yield Part("KV cache", KV_CACHE, size, EXACT, "blocks of the requests")
        graphs = self._graphs()
        if graphs.num_bytes:
            yield graphs

    def _graphs(self) -> Part:
        """Memory of the driver for captured graphs: a figure for each piece, from published logs."""
        numbers, mode = self.version.numbers, self._mode()
        largest = self.options.max_cudagraph_capture_size or min(2 * self.requests, 512)
        if numbers < paged.V1:
            largest = min(largest, 256)
        sizes = capture_sizes(largest, numbers >= WIDER_STEPS)
        decoding = self.requests * (1 + (self.options.num_speculative_tokens or 0))
        captured = len(sizes) if PIECES in mode else 0
        if WHOLE in mode:
            captured += len([size for size in sizes if size <= decoding])
        pieces = len(self.served.layers) // self.job.pipeline + 1
        why = (
            f"{captured} graphs x {pieces} pieces x {GRAPH_BYTES // 1000} kB: most published logs are within 1.7 times"
        )
        return Part("CUDA graphs", OVERHEAD, captured * pieces * GRAPH_BYTES, ASSUMED, why)

    def _mode(self) -> str:
        """What is captured (`compilation.py: CUDAGraphMode`, `vllm.py: __post_init__`)."""
        mode, numbers = self.options.cudagraph_mode.upper(), self.version.numbers
        if self.options.enforce_eager or mode == "NONE":
            return "NONE"
        if mode != "AUTO":
            return mode
        if numbers < paged.V1 or any(layer.kind == CROSS for layer in self.served.layers):
            return WHOLE
        return PIECES if numbers < BOTH_MODES or self._is_pooling() else f"{WHOLE}_AND_{PIECES}"

    # -- what is asked for
    def _cut(self) -> int | None:
        """The window, where requests are not to be longer."""
        windows = [layer.window for layer in self.served.layers if layer.kind in (SLIDING, CHUNKED) and layer.window]
        if not (self.options.disable_sliding_window and windows):
            return None
        cut = min(windows)
        if self.job.context is not None and self.job.context > cut:
            what = f"{self.job.context:,} tokens are more than the window's {cut:,}, at which requests are cut"
            raise UsageError(what, where="context", hint="Leave --disable-sliding-window out.")
        self.longest = min(self.longest or cut, cut)
        return cut

    def _check_kernels(self) -> None:
        """What it refuses of older devices, in every release (`get_min_capability` of each method)."""
        form = methods.form_of(self.served, self.job.quantization)
        named = self.job.quantization or ""
        least = None if form is None else LEAST_CAPABILITY.get(named, LEAST_CAPABILITY.get(form.method))
        if form is None or least is None or self.capability is None or self.capability >= least:
            return
        needed, own = (".".join(map(str, numbers)) for numbers in (least, self.capability))
        what = f"vLLM runs {form.title} from compute capability {needed} on, and this device has {own}"
        raise UsageError(what, where="quantization", hint="Take other weights, or a newer device.")

    def _check_ranks(self) -> None:
        """What it refuses of ranks that share tokens or experts (`config/parallel.py`, `config/model.py`)."""
        job, options, shared = self.job, self.options, self.options.decode_context_parallel_size
        where = "decode_context_parallel_size"
        if job.tensor % shared:
            what = f"{shared} is no divisor of the {job.tensor} ranks that share the heads"
            raise UsageError(what, where=where, hint="Take a divisor of --tensor-parallel-size.")
        heads = max((layer.heads for layer in self.served.layers if layer.kind != LATENT), default=0)
        if shared > 1 and heads and shared > job.tensor // heads:
            what = f"none of {heads} key-value heads is on {shared} of {job.tensor} ranks"
            raise UsageError(what, where=where, hint="At most --tensor-parallel-size / heads.")
        if options.enable_eplb and (not job.expert or job.tensor * job.data == 1):
            what = "balances whole experts over several ranks"
            raise UsageError(what, where="enable_eplb", hint="Add --enable-expert-parallel and ranks.")
        if options.num_redundant_experts and not options.enable_eplb:
            raise UsageError("is for a balance of experts", where="num_redundant_experts", hint="Add --enable-eplb.")

    def _convolution_dtype(self) -> DType | None:
        named = self.options.mamba_cache_dtype
        return None if named == "auto" else dtypes.get(named)

    def _state_dtype(self) -> DType | None:
        """Of recurrences: as asked for, as the config says, or the model's (`MambaStateDtypeCalculator`)."""
        config, named = self.served.text_config, self.options.mamba_ssm_cache_dtype
        if named == "auto" and config.get("model_type") == "kimi_linear":
            return dtypes.FLOAT32
        if named == "auto":
            named = str(config.get("mamba_ssm_dtype") or config.get("mamba_ssm_cache_dtype") or "auto")
        if named == "auto" and config.get("model_type") == "nemotron_h":
            return dtypes.FLOAT32
        return self._convolution_dtype() or self.served.dtype if named == "auto" else dtypes.get(named)

    # -- defaults
    def _step(self) -> tuple[int, int]:
        """Tokens and requests of the largest step (`engine/arg_utils.py`, `config/scheduler.py`)."""
        device, options = self.device, self.options
        if device is None and (options.max_num_batched_tokens is None or options.max_num_seqs is None):
            self.taken.append(("steps of 2,048 tokens and 256 requests", "no device is named", "large ones take more"))
        tokens, requests = self._version_0() if self.version.numbers < paged.V1 else self._version_1()
        return max(tokens, requests), requests

    def _version_0(self) -> tuple[int, int]:
        """Whole prompts in a step, pieces of them where they can be long."""
        options, longest = self.options, self.longest or 0
        requests = options.max_num_seqs or 256
        is_plain = not (options.enable_lora or self.served.draft or self._is_pooling() or self._sees())
        has_windows = any(layer.kind in (SLIDING, CHUNKED) for layer in self.served.layers)
        in_pieces = longest > 32768 and is_plain and not has_windows if self._in_pieces() is None else self._in_pieces()
        tokens = (512 if self.version.numbers < (0, 7) else 2048) if in_pieces else max(longest, 2048)
        tokens = max(tokens, 32768 if self._is_pooling() else 0, 5120 if self._sees() else 0)
        return options.max_num_batched_tokens or tokens, requests

    def _version_1(self) -> tuple[int, int]:
        """A figure for large devices and one for others, no more than requests can have."""
        device, numbers, options = self.device, self.version.numbers, self.options
        memory = 0 if device is None else device.memory_bytes
        is_large = memory >= LARGE_DEVICE and device is not None
        if device is not None and numbers >= (0, 9):
            is_large = is_large and "a100" not in device.name and (numbers < (0, 33) or device.name != "gb10")
        requests, tokens = (1024, 8192) if is_large else (256, 2048)
        if numbers >= (0, 33) and memory >= LARGEST_DEVICE:
            tokens = 16384
        if options.performance_mode == "throughput":
            requests, tokens = 2 * requests, 2 * tokens
        if self._in_pieces() is False or any(layer.kind == CROSS for layer in self.served.layers):
            tokens = max(tokens, self.longest or 0)
        requests = options.max_num_seqs or requests
        if numbers >= NO_MORE_THAN_REQUESTS and self.longest:
            tokens = min(tokens, requests * self.longest)
        tokens = options.max_num_batched_tokens or tokens
        return tokens, options.max_num_seqs or min(requests, tokens)

    def _in_pieces(self) -> bool | None:
        """Whether prompts may be cut; None where nobody says."""
        return {"on": True, "true": True, "off": False, "false": False}.get(self.options.enable_chunked_prefill.lower())

    def _sees(self) -> bool:
        return any(part in str(self.served.config) for part in ("vision_config", "audio_config"))

    def _label(self, stage: int) -> str:
        first = stage * self.job.tensor
        last = first + self.job.tensor - 1
        return f"GPU {first}" if first == last else f"GPU {first} to {last}"

    def _together(self, shares: tuple[Share, ...]) -> tuple[Share, ...]:
        """Replicas hold the same."""
        if len(shares) == 1 and self.job.ranks > 1:
            only = shares[0]
            return (Share(f"GPU 0 to {self.job.ranks - 1}", only.memory_bytes, only.parts),)
        return shares

    def _printed(self, parts: list[Part], budget: int | None, held: int | None, blocks: int | None) -> dict[str, int]:
        found = {"weights": sum(part.num_bytes for part in parts if part.of == WEIGHTS)}
        found["activation_peak"] = sum(part.num_bytes for part in parts if part.of == ACTIVATIONS)
        found["torch_peak"] = found["weights"] + found["activation_peak"]
        cache = {"kv_cache": budget, "kv_cache_tokens": held, "kv_blocks": blocks}
        found["cuda_graph"] = self._graphs().num_bytes
        return found | {name: value for name, value in cache.items() if value is not None}


def capture_sizes(largest: int, wider: bool = True) -> list[int]:
    """Tokens of the steps that are captured as graphs (`config/vllm.py: _set_cudagraph_sizes`).

    >>> len(capture_sizes(512)), len(capture_sizes(512, wider=False)), capture_sizes(16)
    (51, 67, [1, 2, 4, 8, 16])
    """
    sizes = [*SIZES, *range(8, 256, 8), *range(256, largest + 1, 16 if wider else 8)]
    return [size for size in sizes if size <= largest]


def _calibrated(served: Served, version: Version) -> str:
    """What keys and values are kept in where nobody says: as a checkpoint that was calibrated for it asks."""
    found = formats.settings(served.config, served.source.where) or {}
    if version.numbers < CALIBRATED:
        return "auto"
    nested = found.get("quantization")
    holders = (nested if isinstance(nested, Mapping) else {}, found)
    asked = next((one[key] for one in holders for key in CALIBRATION if one.get(key)), None)
    if isinstance(asked, Mapping):
        bits = int(asked.get("num_bits") or 0) if asked.get("type") == "float" else 0
        asked = {8: "fp8", 4: "nvfp4"}.get(bits)
    return str(asked).lower() if str(asked).lower() in ("fp8", "nvfp4") else "auto"


ENGINE = Vllm()
