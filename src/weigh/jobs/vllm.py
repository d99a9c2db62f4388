"""`vllm serve ...`: its flags.

Read: vLLM 0.25 and 0.33 (`engine/arg_utils.py`, `entrypoints/openai/cli_args.py`, `utils/argparse_utils.py`), 0.6.4
and 0.12 for older names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.errors import NotModelledError
from weigh.jobs.commands import ALLOCATOR, FALSE, JSON, LARGEST, MAYBE, NUMBER, REAL, TOKENS, TRUE, WORD, Command, Flag

HARMLESS = """
    --additional-config --all2all-backend --allowed-headers --allowed-local-media-path --allowed-media-domains
    --allowed-methods --allowed-origins --anthropic-disabled-thinking-effort --api-key --api-server-count
    --attention-backend --attention-config --aux-output-config --chat-template --chat-template-content-format
    --code-revision --cohere-format --collect-detailed-traces --config-format --cp-kv-cache-interleave-size
    --cpu-distributed-timeout-seconds --custom-histogram-buckets --data-parallel-address --data-parallel-backend
    --data-parallel-rank --data-parallel-rpc-port --data-parallel-size-local --data-parallel-start-rank
    --data-parallel-supervisor-port --dbo-decode-token-threshold --dbo-prefill-token-threshold
    --dcp-comm-backend --dcp-kv-cache-interleave-size --default-chat-template-kwargs --default-mm-loras --device
    --device-ids --disable-access-log-for-endpoints --distributed-executor-backend --distributed-timeout-seconds
    --download-dir --dp-supervisor-probe-failure-threshold --dp-supervisor-probe-interval-s
    --dp-supervisor-probe-timeout-s --dp-sync-interval --ec-manager-config --ec-transfer-config
    --expert-placement-strategy --fault-tolerance-config --fingerprint-mode --fingerprint-value
    --gdn-prefill-backend --generation-config --grammar-backend --grpc-port --guided-decoding-backend
    --h11-max-header-count --h11-max-incomplete-event-size --hf-config-path --hf-token --host --ignore-patterns
    --io-processor-plugin --ir-op-priority --jit-monitor-mode --kda-decode-backend --kda-prefill-backend
    --kernel-config --kv-cache-metrics-sample --kv-events-config --kv-offloading-backend --kv-offloading-size
    --kv-transfer-config --linear-backend --load-format --log-config-file --log-level --logging-config
    --logits-processors --logprobs-mode --long-prefill-token-threshold --lora-dtype --lora-modules
    --mamba-backend --mamba-cache-philox-rounds --mamba-ssu-algorithm --master-addr --master-port
    --max-cpu-loras --max-log-len --max-logprobs --max-long-partial-prefills --max-num-active-seqs
    --max-num-partial-prefills --max-num-queued-reqs --max-num-queued-tokens --max-num-scheduled-tokens
    --max-parallel-loading-workers --media-io-kwargs --middleware --mm-device-do-normalize
    --mm-encoder-attn-backend --mm-encoder-attn-dtype --mm-encoder-fp8-scale-path
    --mm-encoder-fp8-scale-save-margin --mm-encoder-fp8-scale-save-path --mm-hasher-algorithm
    --mm-processor-cache-gb --mm-processor-cache-type --mm-processor-device --mm-processor-kwargs
    --mm-shm-cache-max-object-size-mb --mm-tensor-ipc --model-impl --model-loader-extra-config --moe-backend
    --nnodes --node-rank --num-scheduler-steps --numa-bind-cpus --numa-bind-nodes --optimization-level
    --otlp-traces-endpoint --override-generation-config --per-request-spec-decode-metrics --pooler-config --port
    --preemption-mode --prefill-schedule-interval --prefix-cache-retention-interval --prefix-caching-hash-algo
    --prefix-match-unit --profiler-config --prompt-adapters --pt-load-map-location --reasoning-config
    --reasoning-effort-map --reasoning-parser --reasoning-parser-plugin --renderer-num-workers --response-role
    --revision --root-path --safetensors-load-strategy --safetensors-prefetch-block-size
    --safetensors-prefetch-num-threads --scheduler-cls --scheduler-delay-factor --scheduling-policy --seed
    --served-model-name --show-hidden-metrics-for-version --shutdown-timeout --sleep-mode-backend
    --sleep-preserve-parameter-names --sparse-indexer-topk-backend --sse-keep-alive-interval --ssl-ca-certs
    --ssl-cert-reqs --ssl-certfile --ssl-ciphers --ssl-keyfile --stream-interval --structured-outputs-config
    --swap-space --tokenizer --tokenizer-mode --tokenizer-pool-size --tokenizer-revision --tool-call-parser
    --tool-parser-plugin --tool-server --tool-strict-level --uds --uvicorn-log-level --video-pruning-method
    --video-pruning-rate --watchdog-config --watermark --watermark-config --worker-cls --worker-extension-cls
    -ac -asc -dpa -dpb -dpl -dpn -dpp -dpr -n -r
""".split()
"""Flags with a value that does not matter to memory."""

ALONE = """
    --aggregate-engine-logging --allow-credentials --allow-deprecated-quantization --async-scheduling
    --calculate-kv-scales --cohere-is-reasoning-model --cudagraph-metrics --data-parallel-external-lb
    --data-parallel-hybrid-lb --data-parallel-multi-port-external-lb --disable-async-output-proc
    --disable-cascade-attn --disable-chunked-mm-input --disable-custom-all-reduce --disable-fastapi-docs
    --disable-frontend-multiprocessing --disable-log-requests --disable-log-stats
    --disable-nccl-for-dp-synchronization --disable-uvicorn-access-log --enable-auto-tool-choice
    --enable-cumem-allocator --enable-ep-weight-filter --enable-fault-tolerance --enable-flash-late-interaction
    --enable-flashinfer-autotune --enable-force-include-usage --enable-layerwise-nvtx-tracing
    --enable-log-deltas --enable-log-outputs --enable-log-requests --enable-logging-iteration-details
    --enable-mamba-cache-stochastic-rounding --enable-mfu-metrics --enable-mm-embeds --enable-nccl-comm-suspend
    --enable-offline-docs --enable-per-request-metrics --enable-prompt-embeds --enable-prompt-tokens-details
    --enable-reasoning --enable-request-id-headers --enable-return-routed-experts --enable-server-load-tracking
    --enable-shm-tensor-arena --enable-sleep-mode --enable-ssl-refresh --enable-tokenizer-info-endpoint
    --enable-trace-replay --exclude-tools-when-tool-choice-none --fail-on-environ-validation --grpc --headless
    --interleave-mm-strings --jit-monitor-verbose --kv-cache-metrics --kv-sharing-fast-prefill --log-error-stack
    --long-prefill-token-threshold-adaptive --numa-bind --ray-workers-use-nsight --return-sampling-mask
    --return-tokens-as-token-ids --scheduler-reserve-full-isl --skip-mm-profiling --skip-tokenizer-init
    --sleep-mode-offload-cudagraph --tokens-only --trust-remote-code --trust-request-chat-template
    --trust-request-mm-kwargs --use-tqdm-on-load --use-v2-block-manager -dpe -dph -dpm
""".split()
"""Flags without a value that do not matter to it."""

COMMAND = Command(
    engine="vllm",
    starts=("vllm serve", "python -m vllm.entrypoints.openai.api_server", "vllm.entrypoints.openai.api_server"),
    positional_model=True,
    flags={
        "--model": Flag("model", WORD),
        "--tensor-parallel-size": Flag("tensor"),
        "-tp": Flag("tensor"),
        "--pipeline-parallel-size": Flag("pipeline"),
        "-pp": Flag("pipeline"),
        "--data-parallel-size": Flag("data"),
        "-dp": Flag("data"),
        "--enable-expert-parallel": Flag("expert", TRUE),
        "-ep": Flag("expert", TRUE),
        "--max-model-len": Flag("context", TOKENS),
        "--dtype": Flag("dtype", WORD),
        "--quantization": Flag("quantization", WORD),
        "-q": Flag("quantization", WORD),
        "--kv-cache-dtype": Flag("kv_dtype", WORD),
        "--gpu-memory-utilization": Flag("gpu_memory_utilization", REAL),
        "--kv-cache-memory-bytes": Flag("kv_cache_memory_bytes", TOKENS),
        "--num-gpu-blocks-override": Flag("num_gpu_blocks_override"),
        "--max-num-seqs": Flag("max_num_seqs", TOKENS),
        "--max-num-batched-tokens": Flag("max_num_batched_tokens", TOKENS),
        "--enable-chunked-prefill": Flag("enable_chunked_prefill", MAYBE),
        "--performance-mode": Flag("performance_mode", WORD),
        "--block-size": Flag("block_size"),
        "--enforce-eager": Flag("enforce_eager", TRUE),
        "--max-cudagraph-capture-size": Flag("max_cudagraph_capture_size"),
        "--cuda-graph-sizes": Flag("max_cudagraph_capture_size"),
        "--enable-prefix-caching": Flag("enable_prefix_caching", TRUE),
        "--disable-hybrid-kv-cache-manager": Flag("disable_hybrid_kv_cache_manager", TRUE),
        "--enable-lora": Flag("enable_lora", TRUE),
        "--max-loras": Flag("max_loras"),
        "--max-lora-rank": Flag("max_lora_rank"),
        "--mm-encoder-tp-mode": Flag("mm_encoder_tp_mode", WORD),
        "--task": Flag("task", WORD),
        "--convert": Flag("convert", WORD),
        "--cpu-offload-gb": Flag("cpu_offload_gb", REAL),
        "--runner": Flag("runner", WORD),
        "--language-model-only": Flag("language_model_only", TRUE),
        "--speculative-config": Flag("speculative", JSON),
        "-sc": Flag("speculative", JSON),
        "--spec-model": Flag("draft", WORD),
        "--spec-method": Flag("speculative_method", WORD),
        "--spec-tokens": Flag("num_speculative_tokens", NUMBER),
        "--compilation-config": Flag("compilation", JSON),
        "-cc": Flag("compilation", JSON),
        "--limit-mm-per-prompt": Flag("limits", JSON),
        "--disable-cuda-graph": Flag("enforce_eager", TRUE),
        "--disable-prefix-caching": Flag("enable_prefix_caching", FALSE),
        "--decode-context-parallel-size": Flag("decode_context_parallel_size"),
        "-dcp": Flag("decode_context_parallel_size"),
        "--enable-eplb": Flag("enable_eplb", TRUE),
        "--eplb-config": Flag("eplb", JSON),
        "--eplb-config.num_redundant_experts": Flag("num_redundant_experts"),
        "--eplb-config.window_size": Flag("eplb_window_size"),
        "--mamba-cache-dtype": Flag("mamba_cache_dtype", WORD),
        "--mamba-ssm-cache-dtype": Flag("mamba_ssm_cache_dtype", WORD),
        "--disable-sliding-window": Flag("disable_sliding_window", TRUE),
        "--cudagraph-capture-sizes": Flag("max_cudagraph_capture_size", LARGEST),
        "--device-memory-utilization": Flag("gpu_memory_utilization", REAL),
    },
    harmless=frozenset((*HARMLESS, *ALONE)),
    alone=frozenset(ALONE),
    variables=ALLOCATOR,
    refused={
        "--fully-sharded-loras": "adapters that ranks share whole",
        "--lora-target-modules": "adapters of some layers",
        "--config": "a file of flags",
        "--cpu-offload-params": "parts of the weights in the host's memory",
        "--dcp-q-replicate": "queries on every rank",
        "--diffusion-config": "a model of diffusion",
        "--elastic-ep-max-dp-size": "ranks that come and go",
        "--enable-batch-sharded-sampling": "ranks that share the sampling",
        "--enable-dbo": "overlapped half batches",
        "--enable-elastic-ep": "ranks that come and go",
        "--enable-hc-sp": "ranks that share a sequence",
        "--enable-mamba-shared-prefix-checkpoint": "another way to keep states for reuse",
        "--enable-mixed-moe-lora-format": "adapters of experts",
        "--enable-moe-shared-loras": "adapters of experts",
        "--enable-prompt-adapter": "prompt adapters",
        "--enable-scale-out": "ranks that come and go",
        "--enable-tower-connector-lora": "adapters of encoders",
        "--engram-config": "memories beside the layers",
        "--hf-overrides": "another config than the model's",
        "--kv-cache-dtype-skip-layers": "a cache whose layers differ in format",
        "--mamba-block-size": "blocks of states of another size",
        "--mamba-cache-mode": "another way to keep states for reuse",
        "--max-lora-cls-labels": "adapters of heads that classify",
        "--mm-encoder-only": "an encoder alone",
        "--mm-ipc-gpu-memory-gb": "room for pictures on the device",
        "--model-class-overrides": "another class than the model's",
        "--monokernel": "a step in one kernel",
        "--offload-backend": "weights fetched ahead from the host",
        "--offload-group-size": "weights fetched ahead from the host",
        "--offload-num-in-group": "weights fetched ahead from the host",
        "--offload-params": "weights fetched ahead from the host",
        "--offload-prefetch-step": "weights fetched ahead from the host",
        "--override-attention-dtype": "attention in another format",
        "--prefill-context-parallel-size": "prefill context parallelism",
        "--quantization-config": "weights quantized as they are loaded",
        "--replayssm-buffer-len": "states that are replayed",
        "--specialize-active-lora": "graphs for each number of adapters",
        "--swa-bounded-replay": "windows that are replayed",
        "--ubatch-size": "overlapped half batches",
        "--use-fp64-gumbel": "noise in eight bytes",
        "--use-replayssm": "states that are replayed",
        "--weight-transfer-config": "weights that are sent while serving",
        "-dc": "a model of diffusion",
        "-pcp": "prefill context parallelism",
    },
)


def document(word: str, found: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings and models of a flag whose value is JSON.

    Raises:
        NotModelledError: it has a key that matters and is not modelled.
    """
    if word == "limits":
        counts = [one.get("count", 1) if isinstance(one, dict) else int(one) for one in found.values()]
        return ({"language_model_only": True} if counts and not any(counts) else {}), {}
    if word == "compilation":
        return _compilation(found), {}
    if word == "eplb":
        keys = {"num_redundant_experts": "num_redundant_experts", "window_size": "eplb_window_size"}
        return {keys[key]: int(value) for key, value in found.items() if key in keys}, {}
    words: dict[str, Any] = {}
    if "num_speculative_tokens" in found:
        words["num_speculative_tokens"] = int(found["num_speculative_tokens"])
    if "method" in found:
        method = str(found["method"])
        words["speculative_method"] = "mtp" if method.endswith("mtp") else method
    return words, {"draft": str(found["model"])} if "model" in found else {}


def _compilation(found: Mapping[str, Any]) -> dict[str, Any]:
    words: dict[str, Any] = {}
    for key, value in found.items():
        if key == "cudagraph_capture_sizes":
            words["max_cudagraph_capture_size"] = max(map(int, value))
        elif key == "max_cudagraph_capture_size":
            words[key] = int(value)
        elif key == "cudagraph_mode":
            words["cudagraph_mode"] = str(value).upper()
        elif key in ("mode", "level") and str(value) in ("0", "NONE"):
            raise NotModelledError("graphs of code that is not compiled", where="vllm --compilation-config")
    return words
