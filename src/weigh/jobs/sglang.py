"""`python -m sglang.launch_server ...`: its flags.

Read: SGLang 0.5.6 (`srt/server_args.py`).
"""

from __future__ import annotations

from weigh.jobs.commands import ALLOCATOR, NUMBER, REAL, TRUE, WORD, Command, Flag

HARMLESS = """
    --allow-auto-truncate --api-key --attention-backend --base-gpu-id --bucket-e2e-request-latency --chat-template
    --completion-template --constrained-json-disable-any-whitespace --crash-dump-folder --decode-attention-backend
    --decode-log-interval --deepep-config --deepep-mode --delete-ckpt-after-loading --device
    --disable-chunked-prefix-cache --disable-cuda-graph-padding --disable-custom-all-reduce
    --disable-fast-image-processor --disable-outlines-disk-cache --disable-overlap-schedule
    --disaggregation-bootstrap-port --disaggregation-ib-device --disaggregation-mode
    --disaggregation-transfer-backend --dist-init-addr --dist-timeout --download-dir --enable-cache-report
    --enable-custom-logit-processor --enable-deterministic-inference --enable-flashinfer-allreduce-fusion
    --enable-memory-saver --enable-metrics --enable-metrics-for-all-schedulers --enable-mixed-chunk
    --enable-multimodal --enable-nan-detection --enable-nccl-nvls --enable-p2p-check --enable-priority-scheduling
    --enable-request-time-stats-logging --enable-return-hidden-states --enable-tokenizer-batch-encode
    --enable-torch-compile --enable-trace --ep-dispatch-algorithm --fastapi-root-path --file-storage-path
    --flashinfer-mla-disable-ragged --gc-warning-threshold-secs --grammar-backend --grpc-mode --hicache-io-backend
    --hicache-mem-layout --hicache-ratio --hicache-size --hicache-write-policy --host --is-embedding
    --keep-mm-feature-on-device --kv-events-config --load-balance-method --load-format --load-watch-interval
    --log-level --log-level-http --log-requests --log-requests-level --max-prefill-tokens --max-queued-requests
    --mm-attention-backend --mm-max-concurrent-calls --model-impl --model-loader-extra-config --moe-a2a-backend
    --moe-runner-backend --nccl-init-addr --nccl-port --nnodes --node-rank --nsa-decode-backend
    --nsa-prefill-backend --num-continuous-decode-steps --num-reserved-decode-tokens --numa-node
    --otlp-traces-endpoint --port --preferred-sampling-params --prefill-attention-backend --radix-eviction-policy
    --random-seed --reasoning-parser --revision --sampling-backend --sampling-defaults --schedule-conservativeness
    --schedule-policy --scheduler-recv-interval --served-model-name --show-time-cost --skip-server-warmup
    --skip-tokenizer-init --sleep-on-idle --speculative-accept-threshold-acc --speculative-accept-threshold-single
    --speculative-attention-mode --speculative-eagle-topk --speculative-num-steps --speculative-token-map
    --stream-interval --stream-output --tokenizer-mode --tokenizer-path --tokenizer-worker-num --tool-call-parser
    --tool-server --torch-compile-max-bs --triton-attention-num-kv-splits --triton-attention-reduce-in-fp32
    --trust-remote-code --warmups --watchdog-timeout --weight-loader-disable-mmap --weight-version
    --enable-dp-lm-head --speculative-algorithm --enable-two-batch-overlap
""".split()

ALONE = """
    --allow-auto-truncate --constrained-json-disable-any-whitespace --delete-ckpt-after-loading
    --disable-chunked-prefix-cache --disable-cuda-graph-padding --disable-custom-all-reduce
    --disable-fast-image-processor --disable-outlines-disk-cache --disable-overlap-schedule --enable-cache-report
    --enable-custom-logit-processor --enable-deterministic-inference --enable-flashinfer-allreduce-fusion
    --enable-memory-saver --enable-metrics --enable-metrics-for-all-schedulers --enable-mixed-chunk
    --enable-multimodal --enable-nan-detection --enable-nccl-nvls --enable-p2p-check --enable-priority-scheduling
    --enable-request-time-stats-logging --enable-return-hidden-states --enable-tokenizer-batch-encode
    --enable-torch-compile --enable-trace --flashinfer-mla-disable-ragged --grpc-mode --is-embedding
    --keep-mm-feature-on-device --log-requests --show-time-cost --skip-server-warmup --skip-tokenizer-init
    --sleep-on-idle --stream-output --triton-attention-reduce-in-fp32 --trust-remote-code
    --weight-loader-disable-mmap --enable-dp-lm-head --enable-two-batch-overlap
""".split()

COMMAND = Command(
    engine="sglang",
    starts=("python -m sglang.launch_server", "sglang serve", "sglang.launch_server"),
    flags={
        "--model-path": Flag("model", WORD),
        "--model": Flag("model", WORD),
        "--tp-size": Flag("tensor"),
        "--tp": Flag("tensor"),
        "--tensor-parallel-size": Flag("tensor"),
        "--pp-size": Flag("pipeline"),
        "--pipeline-parallel-size": Flag("pipeline"),
        "--dp-size": Flag("data"),
        "--dp": Flag("data"),
        "--data-parallel-size": Flag("data"),
        "--ep-size": Flag("expert_ranks"),
        "--ep": Flag("expert_ranks"),
        "--expert-parallel-size": Flag("expert_ranks"),
        "--context-length": Flag("context"),
        "--dtype": Flag("dtype", WORD),
        "--quantization": Flag("quantization", WORD),
        "--kv-cache-dtype": Flag("kv_dtype", WORD),
        "--mem-fraction-static": Flag("mem_fraction_static", REAL),
        "--max-total-tokens": Flag("max_total_tokens"),
        "--max-running-requests": Flag("max_running_requests"),
        "--chunked-prefill-size": Flag("chunked_prefill_size"),
        "--cuda-graph-max-bs": Flag("cuda_graph_max_bs"),
        "--disable-cuda-graph": Flag("disable_cuda_graph", TRUE),
        "--page-size": Flag("page_size"),
        "--enable-dp-attention": Flag("enable_dp_attention", TRUE),
        "--disable-radix-cache": Flag("disable_radix_cache", TRUE),
        "--swa-full-tokens-ratio": Flag("swa_full_tokens_ratio", REAL),
        "--speculative-draft-model-path": Flag("draft", WORD),
        "--speculative-draft-model": Flag("draft", WORD),
        "--speculative-num-draft-tokens": Flag("num_draft_tokens", NUMBER),
    },
    harmless=frozenset(HARMLESS),
    alone=frozenset(ALONE),
    variables=ALLOCATOR,
    refused={
        "--config": "a file of flags",
        "--cpu-offload-gb": "weights in the host's memory",
        "--cuda-graph-bs": "a list of captured sizes",
        "--disable-hybrid-swa-memory": "windows that keep every token",
        "--enable-lora": "slots for adapters",
        "--lora-paths": "slots for adapters",
        "--enable-eplb": "redundant experts",
        "--ep-num-redundant-experts": "redundant experts",
        "--enable-double-sparsity": "sparse keys",
        "--enable-piecewise-cuda-graph": "graphs of pieces",
        "--json-model-override-args": "another config than the model's",
        "--mamba-full-memory-ratio": "another share of states",
        "--max-mamba-cache-size": "another number of states",
        "--mamba-ssm-dtype": "states in another format",
        "--moe-dense-tp-size": "dense layers on fewer ranks",
        "--torchao-config": "torchao's formats",
    },
)
