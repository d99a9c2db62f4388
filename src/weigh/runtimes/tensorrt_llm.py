"""TensorRT-LLM: the blocks of its cache. Its engines' own memory (weights, activations) is taken as tensors say.

Its PyTorch backend loads the model, answers as many made-up prompts as fill a step, and gives the cache a fraction of
what the device has beside the peak of that: (total - peak) x `free_gpu_memory_fraction`, in whole blocks. Windows keep
every token unless `max_attention_window` says otherwise.

Read: the releases from 1.0 to the one of September 2026, which agree in these rules and constants
(`tensorrt_llm/llmapi/llm_args.py: KvCacheConfig, BaseLlmArgs`: 0.9, 32 tokens, 2,048 requests, 8,192 tokens;
`_torch/pyexecutor/_util.py: _cal_max_memory, _create_dummy_context_requests`, at
https://github.com/NVIDIA/TensorRT-LLM/blob/0004396720054fd8e205cbf616f21f0b57c6b412/tensorrt_llm/_torch/pyexecutor/_util.py;
`_torch/pyexecutor/resource_manager.py: get_cache_bytes_per_token`, which has nvfp4 with a scale byte for 16 numbers).
"""

from __future__ import annotations

from weigh.errors import NotModelledError
from weigh.kernels.workspaces import workspace_bytes
from weigh.recipes.keeping import Keeping, keep
from weigh.recipes.settings import Text
from weigh.records import dataclass
from weigh.runtimes import fused, methods, profiling, sharding
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

BLOCK = 32
"""Tokens of a block (`tokens_per_block`)."""
CONTEXT = 500 * 2**20
"""What the driver's context and NCCL have."""


@dataclass(frozen=True, slots=True)
class TensorrtLlmOptions:
    """Settings of `trtllm-serve`, in its words."""

    free_gpu_memory_fraction: float = 0.9
    """The fraction of the memory that is free once the model is loaded which the cache has."""
    max_num_tokens: int = 8192
    """Tokens in a step at most."""
    max_batch_size: int = 2048
    """Requests in a step at most."""
    tokens_per_block: int = BLOCK
    """Tokens of a block of the cache."""
    max_tokens: int | None = None
    """Tokens of the cache at most."""
    max_gpu_total_bytes: int | None = None
    """Bytes of the cache at most."""
    backend: Text = "pytorch"
    """What runs the model; "pytorch" alone is modelled."""


class TensorrtLlm(Engine):
    """TensorRT-LLM."""

    name = "tensorrt-llm"
    versions = ("1.0", "1.1", "1.2")
    options = TensorrtLlmOptions

    def launch(
        self, served: Served, job: ServeJob, options: TensorrtLlmOptions, place: Place, version: Version
    ) -> Launch:
        """Weights, a step, and blocks in a fraction of the rest."""
        if options.backend != "pytorch":
            raise NotModelledError(f"TensorRT-LLM's backend {options.backend!r}", where="backend")
        check_limits(served, job.context, job.tensor)
        check_cache(served, job.kv_dtype, "TensorRT-LLM", ("nvfp4",))
        if served.draft is not None:
            raise NotModelledError("a draft in TensorRT-LLM", where="draft")
        if any(layer.states for layer in served.layers):
            raise NotModelledError("recurrent states in TensorRT-LLM", where=served.source.name)
        capability = None if place.device is None else place.device.compute_capability
        rank = sharding.Rank(job.tensor, job.tensor, job.expert, stages=job.pipeline)
        loaded = fused.loaded(served, rank, job.quantization, capability)
        weights = loaded.reserved
        config, longest = served.text_config, job.context or served.longest or options.max_num_tokens
        spelled = ".".join(map(str, capability or (8, 0)))
        step = profiling.Step(
            options.max_num_tokens,
            -(-options.max_num_tokens // max(1, min(options.max_num_tokens, longest - 1))),
            served.hidden,
            int(config["vocab_size"]),
            served.dtype,
            compiled=False,
            sorts=False,
            ranks=job.tensor,
            experts_per_token=served.experts_per_token,
            workspace=workspace_bytes(spelled),
        )
        peak = profiling.peak(step, fused.matrices(served, rank))
        layers = served.layers[: -(-len(served.layers) // job.pipeline)]
        kept = keep(layers, Keeping(1, kv_dtype=job.kv_dtype, tensor=job.tensor), served.dtype)
        per_token = sum(layer.bytes_per_token for layer in kept)
        size = options.tokens_per_block

        def demand(context: int, users: int) -> int:
            return -(-context // size) * size * per_token * -(-users // job.data)

        memory = place.memory_bytes
        rest = None if memory is None else memory - CONTEXT - weights - peak.num_bytes
        blocks = None if rest is None else max(0, int(rest * options.free_gpu_memory_fraction)) // (size * per_token)
        if blocks is not None and options.max_tokens is not None:
            blocks = min(blocks, options.max_tokens // size)
        if blocks is not None and options.max_gpu_total_bytes is not None:
            blocks = min(blocks, options.max_gpu_total_bytes // (size * per_token))
        cache = demand(job.context or served.longest or 1, job.concurrency)
        supply = None if blocks is None else blocks * size * per_token
        parts = (
            Part("weights", WEIGHTS, weights, MODELLED, "each tensor of a rank, as vLLM would lay them out"),
            Part("activations of the largest step", ACTIVATIONS, peak.num_bytes, MODELLED, f"at {peak.what}"),
            Part("context and NCCL", OVERHEAD, CONTEXT, ASSUMED, "the driver's"),
            Part("KV cache", KV_CACHE, cache if supply is None else supply, EXACT, "whole blocks"),
        )
        label = "GPU 0" if job.ranks == 1 else f"GPU 0 to {job.ranks - 1}"
        return Launch(
            (Share(label, memory, parts),),
            demand,
            supply,
            served.longest,
            tokens=None if blocks is None else blocks * size,
            blocks=blocks,
            block_size=size,
            assumptions=(*self.unread(version), *methods.stored_otherwise(served, "TensorRT-LLM")),
            most_sequences=options.max_batch_size,
            weights=methods.title_of(served, job.quantization),
            routed=loaded.routed,
        )


def tokens(budget: int, bytes_per_token: int, block: int = BLOCK) -> int:
    """Tokens that a budget of bytes has room for.

    >>> tokens(73755325891, 114688)
    643072
    """
    return budget // bytes_per_token // block * block


ENGINE = TensorrtLlm()
