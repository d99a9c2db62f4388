"""`trtllm-serve ...`: its flags, and the file of further settings that it takes.

Read: TensorRT-LLM 1.2 and what 1.3 added
(https://github.com/NVIDIA/TensorRT-LLM/blob/00209af149e7774406881a37283dce303571eb11/tensorrt_llm/commands/serve.py;
`llmapi/llm_args.py: TorchLlmArgs, KvCacheConfig` for the file).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.errors import NotModelledError
from weigh.jobs.commands import FILE, REAL, WORD, Command, Flag

HARMLESS = """
    --chat-template --custom-module-dirs --custom-tokenizer --disagg-cluster-uri --gpus-per-node --host --log-level
    --media-io-kwargs --metadata-server-config-file --num-postprocess-workers --otlp-traces-endpoint --port
    --reasoning-parser --revision --served-model-name --server-role --tokenizer --tool-parser
""".split()
"""Flags with a value that does not matter to memory."""

ALONE = "--enable-chunked-prefill --fail-fast-on-attention-window-too-large --grpc --trust-remote-code".split()
"""Flags without a value that do not matter to it."""

COMMAND = Command(
    engine="tensorrt-llm",
    starts=("trtllm-serve", "trtllm-serve serve"),
    positional_model=True,
    underscores=True,
    flags={
        "--model": Flag("model", WORD),
        "--backend": Flag("backend", WORD),
        "--tp-size": Flag("tensor"),
        "--tensor-parallel-size": Flag("tensor"),
        "--pp-size": Flag("pipeline"),
        "--pipeline-parallel-size": Flag("pipeline"),
        "--ep-size": Flag("expert_ranks"),
        "--moe-expert-parallel-size": Flag("expert_ranks"),
        "--max-seq-len": Flag("context"),
        "--max-batch-size": Flag("max_batch_size"),
        "--max-num-tokens": Flag("max_num_tokens"),
        "--kv-cache-free-gpu-memory-fraction": Flag("free_gpu_memory_fraction", REAL),
        "--free-gpu-memory-fraction": Flag("free_gpu_memory_fraction", REAL),
        "--kv-cache-dtype": Flag("kv_dtype", WORD),
        "--config": Flag("file", FILE),
        "--extra-llm-api-options": Flag("file", FILE),
    },
    harmless=frozenset((*HARMLESS, *ALONE)),
    alone=frozenset(ALONE),
    refused={
        "--cluster-size": "clusters of experts",
        "--context-parallel-size": "ranks that share the tokens",
        "--cp-size": "ranks that share the tokens",
        "--max-beam-width": "beams",
        "--moe-cluster-parallel-size": "clusters of experts",
    },
)

CACHE = {
    "dtype": "kv_dtype",
    "free_gpu_memory_fraction": "free_gpu_memory_fraction",
    "max_gpu_total_bytes": "max_gpu_total_bytes",
    "max_tokens": "max_tokens",
    "tokens_per_block": "tokens_per_block",
}
"""Keys of `kv_cache_config`, and the settings that they are."""
KEYS = {
    "dtype": "dtype",
    "max_batch_size": "max_batch_size",
    "max_num_tokens": "max_num_tokens",
    "max_seq_len": "context",
    "pipeline_parallel_size": "pipeline",
    "tensor_parallel_size": "tensor",
}
"""Keys of the file, and the settings that they are."""
INERT = frozenset(
    """
    allreduce_strategy attn_backend cache_transceiver_config cuda_graph_config custom_tokenizer
    disable_overlap_scheduler enable_autotuner enable_chunked_prefill enable_iter_perf_stats
    enable_iter_req_stats enable_min_latency garbage_collection_gen0_threshold gpus_per_node guided_decoding_backend
    iter_stats_max_iterations mm_encoder_only_backend nvfp4_gemm_config num_postprocess_workers otlp_traces_endpoint
    perf_metrics_max_requests print_iter_log reasoning_parser request_stats_max_iterations return_perf_metrics revision
    sampler_type scheduler_config stream_interval tokenizer tokenizer_mode tool_parser trust_remote_code
    """.split()
)
"""Keys of the file that do not change the weights or the cache: graphs come out of what the fraction leaves."""
INERT_CACHE = frozenset(
    """
    attention_dp_events_gather_period_ms copy_on_partial_reuse enable_block_reuse enable_partial_reuse
    event_buffer_max_size host_cache_size onboard_blocks secondary_offload_min_priority
    """.split()
)
"""Those of `kv_cache_config`."""


def document(word: str, found: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings of the file that `--config` names.

    Raises:
        NotModelledError: it has a key that matters and is not modelled, or is not known.
    """
    words: dict[str, Any] = {}
    for key, value in found.items():
        if key == "kv_cache_config":
            words |= _cache(value)
        elif key == "moe_config" and not set(value) - {"backend", "max_num_tokens"}:
            continue
        elif key in ("moe_expert_parallel_size", "ep_size"):
            words["expert"] = int(value) > 1
        elif key == "backend":
            words |= {"backend": value}
        elif key in KEYS:
            words[KEYS[key]] = value
        elif key not in INERT and value not in (None, False) and not (key.endswith("_size") and value == 1):
            raise NotModelledError(f"its {key!r}", where=f"tensorrt-llm --{word}")
    return words, {}


def _cache(found: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in found.items():
        if key not in CACHE and key not in INERT_CACHE and value is not None:
            raise NotModelledError(f"its 'kv_cache_config.{key}'", where="tensorrt-llm --config")
    return {CACHE[key]: value for key, value in found.items() if key in CACHE and value is not None}
