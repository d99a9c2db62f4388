"""`vllm serve ...`: its flags.

Read: vLLM 0.25 (`engine/arg_utils.py`, `entrypoints/openai/cli_args.py`, `utils/argparse_utils.py`), 0.6.4 and 0.12 for
older names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weigh.errors import NotModelledError
from weigh.jobs.commands import ALLOCATOR, FALSE, JSON, NUMBER, REAL, TOKENS, TRUE, WORD, Command, Flag

HARMLESS = """
    --additional-config --aggregate-engine-logging --all2all-backend --allow-credentials
    --allow-deprecated-quantization --allowed-headers --allowed-local-media-path --allowed-media-domains
    --allowed-methods --allowed-origins --api-key --api-server-count --async-scheduling --attention-backend
    --attention-config --calculate-kv-scales --chat-template --chat-template-content-format --code-revision
    --collect-detailed-traces --config-format --convert --cp-kv-cache-interleave-size
    --cpu-distributed-timeout-seconds --cudagraph-metrics --data-parallel-address --data-parallel-backend
    --data-parallel-external-lb --data-parallel-hybrid-lb --data-parallel-rank --data-parallel-rpc-port
    --data-parallel-size-local --data-parallel-start-rank --dcp-comm-backend --default-mm-loras --device
    --device-ids --disable-access-log-for-endpoints --disable-cascade-attn --disable-chunked-mm-input
    --disable-custom-all-reduce --disable-fastapi-docs --disable-frontend-multiprocessing --disable-log-requests
    --disable-log-stats --disable-nccl-for-dp-synchronization --disable-uvicorn-access-log
    --distributed-executor-backend --distributed-timeout-seconds --download-dir --enable-auto-tool-choice
    --enable-chunked-prefill --enable-cumem-allocator --enable-flashinfer-autotune --enable-force-include-usage
    --enable-layerwise-nvtx-tracing --enable-log-outputs --enable-log-requests --enable-logging-iteration-details
    --enable-mfu-metrics --enable-prompt-tokens-details --enable-reasoning --enable-request-id-headers
    --enable-server-load-tracking --enable-sleep-mode --enable-ssl-refresh --exclude-tools-when-tool-choice-none
    --expert-placement-strategy --fail-on-environ-validation --fully-sharded-loras --generation-config
    --grammar-backend --guided-decoding-backend --headless --hf-config-path --hf-token --host --ignore-patterns
    --interleave-mm-strings --io-processor-plugin --jit-monitor-mode --jit-monitor-verbose --kv-cache-metrics
    --kv-cache-metrics-sample --kv-events-config --kv-offloading-backend --kv-offloading-size --linear-backend
    --load-format --log-config-file --logits-processors --logprobs-mode --long-prefill-token-threshold
    --lora-dtype --lora-modules --lora-target-modules --mamba-backend --master-addr --master-port --max-cpu-loras
    --max-log-len --max-logprobs --max-long-partial-prefills --max-num-partial-prefills
    --max-parallel-loading-workers --media-io-kwargs --middleware --mm-encoder-attn-backend
    --mm-encoder-tp-mode --mm-processor-cache-gb --mm-processor-cache-type --mm-processor-kwargs --model-impl
    --model-loader-extra-config --moe-backend --nnodes --node-rank --numa-bind --optimization-level
    --otlp-traces-endpoint --override-generation-config --performance-mode --pooler-config --port
    --preemption-mode --prefix-caching-hash-algo --profiler-config --prompt-adapters --pt-load-map-location
    --ray-workers-use-nsight --reasoning-config --reasoning-parser --response-role --return-tokens-as-token-ids
    --revision --root-path --safetensors-load-strategy --scheduler-cls --scheduler-delay-factor
    --scheduling-policy --seed --served-model-name --show-hidden-metrics-for-version --shutdown-timeout
    --skip-mm-profiling --skip-tokenizer-init --ssl-ca-certs --ssl-cert-reqs --ssl-certfile --ssl-keyfile
    --stream-interval --structured-outputs-config --swap-space --task --tokenizer --tokenizer-mode
    --tokenizer-pool-size --tokenizer-revision --tool-call-parser --tool-parser-plugin --tool-server
    --trust-remote-code --use-tqdm-on-load --use-v2-block-manager --uvicorn-log-level --uds --watermark --worker-cls
    --worker-extension-cls -n -r --num-scheduler-steps --disable-async-output-proc
""".split()

ALONE = """
    --aggregate-engine-logging --allow-credentials --allow-deprecated-quantization --async-scheduling
    --calculate-kv-scales --cudagraph-metrics --data-parallel-external-lb --data-parallel-hybrid-lb
    --disable-cascade-attn --disable-chunked-mm-input --disable-custom-all-reduce --disable-fastapi-docs
    --disable-frontend-multiprocessing --disable-log-requests --disable-log-stats
    --disable-nccl-for-dp-synchronization --disable-uvicorn-access-log --enable-auto-tool-choice
    --enable-chunked-prefill --enable-cumem-allocator --enable-flashinfer-autotune --enable-force-include-usage
    --enable-layerwise-nvtx-tracing --enable-log-outputs --enable-log-requests --enable-logging-iteration-details
    --enable-mfu-metrics --enable-prompt-tokens-details --enable-reasoning --enable-request-id-headers
    --enable-server-load-tracking --enable-sleep-mode --enable-ssl-refresh --exclude-tools-when-tool-choice-none
    --fail-on-environ-validation --fully-sharded-loras --headless --interleave-mm-strings --kv-cache-metrics
    --numa-bind --ray-workers-use-nsight --return-tokens-as-token-ids --skip-mm-profiling --skip-tokenizer-init
    --trust-remote-code --use-tqdm-on-load --use-v2-block-manager --disable-async-output-proc
""".split()

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
        "--block-size": Flag("block_size"),
        "--enforce-eager": Flag("enforce_eager", TRUE),
        "--max-cudagraph-capture-size": Flag("max_cudagraph_capture_size"),
        "--cuda-graph-sizes": Flag("max_cudagraph_capture_size"),
        "--enable-prefix-caching": Flag("enable_prefix_caching", TRUE),
        "--disable-hybrid-kv-cache-manager": Flag("disable_hybrid_kv_cache_manager", TRUE),
        "--enable-lora": Flag("enable_lora", TRUE),
        "--max-loras": Flag("max_loras"),
        "--max-lora-rank": Flag("max_lora_rank"),
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
    },
    harmless=frozenset(HARMLESS),
    alone=frozenset(ALONE),
    variables=ALLOCATOR,
    refused={
        "--config": "a file of flags",
        "--decode-context-parallel-size": "decode context parallelism",
        "-dcp": "decode context parallelism",
        "--prefill-context-parallel-size": "prefill context parallelism",
        "--enable-dbo": "overlapped half batches",
        "--enable-eplb": "redundant experts",
        "--enable-prompt-adapter": "prompt adapters",
        "--hf-overrides": "another config than the model's",
        "--mamba-block-size": "blocks of states of another size",
        "--mamba-cache-dtype": "states in another format",
        "--mamba-ssm-cache-dtype": "states in another format",
        "--kv-cache-dtype-skip-layers": "a cache whose layers differ in format",
        "--mm-encoder-only": "an encoder alone",
        "--offload-backend": "weights fetched ahead from the host",
        "--disable-sliding-window": "a context cut to the window",
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
        elif key == "cudagraph_mode" and str(value).upper() == "NONE":
            words["max_cudagraph_capture_size"] = 1
        elif key in ("mode", "level") and str(value) in ("0", "NONE"):
            raise NotModelledError("graphs of code that is not compiled", where="vllm --compilation-config")
    return words
