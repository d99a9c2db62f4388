"""TensorRT-LLM: the blocks of its cache. Its engines' own memory (weights, activations) is taken as tensors say.

Its PyTorch backend gives the cache a fraction of what is free once the model is loaded and a step was run
(`free_gpu_memory_fraction`).

Its rules stand in TensorRT-LLM 1.2, which was not opened again for the constants here
(`tensorrt_llm/llmapi/llm_args.py: KvCacheConfig`, `_torch/pyexecutor/resource_manager.py:
KVCacheManager.calculate_max_num_blocks`, `_torch/pyexecutor/_util.py`).
"""

from __future__ import annotations

from weigh.errors import NotModelledError
from weigh.kernels.workspaces import workspace_bytes
from weigh.recipes.keeping import Keeping, keep
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


class TensorrtLlm(Engine):
    """TensorRT-LLM."""

    name = "tensorrt-llm"
    versions = ("1.2",)
    options = TensorrtLlmOptions

    def launch(
        self, served: Served, job: ServeJob, options: TensorrtLlmOptions, place: Place, version: Version
    ) -> Launch:
        """Weights, a step, and blocks in a fraction of the rest."""
        check_limits(served, job.context, job.tensor)
        check_cache(served, job.kv_dtype, "TensorRT-LLM")
        if not any(layer.heads or layer.latent_width for layer in served.layers):
            raise NotModelledError("a model that keeps no keys and values, in TensorRT-LLM,", where=served.source.name)
        capability = None if place.device is None else place.device.compute_capability
        rank = sharding.rank_of(job)
        loaded = fused.loaded(served, rank, job.quantization, capability)
        weights = loaded.reserved
        config = served.text_config
        spelled = ".".join(map(str, capability or (8, 0)))
        step = profiling.Step(
            options.max_num_tokens,
            min(options.max_batch_size, options.max_num_tokens),
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
