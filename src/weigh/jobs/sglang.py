"""`python -m sglang.launch_server ...`: its flags.

Read: SGLang 0.5.6 and 0.5.23 (`srt/server_args.py`, `srt/arg_groups/fields`).
"""

from __future__ import annotations

from weigh.jobs.commands import ALLOCATOR, LARGEST, NUMBER, REAL, TRUE, WORD, WORDS, Command, Flag

HARMLESS = """
    --admin-api-key --allowed-media-domains --api-key --asr-max-buffer-seconds --asr-max-concurrent-sessions
    --attention-backend --base-gpu-id --batch-notify-size --bf16-gemm-backend --boundary-reduction
    --bucket-e2e-request-latency --bucket-inter-token-latency --bucket-time-to-first-token --chat-template
    --completion-template --constrained-json-max-whitespace-cnt --constrained-json-whitespace-pattern
    --context-bucket --crash-dump-folder --cuda-graph-backend-decode --cuda-graph-backend-prefill
    --dcp-comm-backend --debug-tensor-dump-inject --debug-tensor-dump-input-file --debug-tensor-dump-layers
    --debug-tensor-dump-output-folder --decode-attention-backend --decode-log-interval
    --decoupled-spec-bind-endpoint --decoupled-spec-connect-endpoints --decoupled-spec-rank
    --decoupled-spec-role --deepep-config --deepep-dispatcher-output-dtype --deepep-mode --deepep-v2-mode
    --default-chat-template-kwargs --default-priority-value --detokenizer-worker-num --device
    --disaggregation-bootstrap-port --disaggregation-decode-allocation-policy --disaggregation-decode-dp
    --disaggregation-decode-extra-slots --disaggregation-decode-host-receive-threshold
    --disaggregation-decode-polling-interval --disaggregation-decode-retraction-backup
    --disaggregation-decode-tp --disaggregation-ib-device --disaggregation-mode --disaggregation-prefill-pp
    --disaggregation-transfer-backend --dist-init-addr --dist-timeout --download-dir --dsa-decode-backend
    --dsa-paged-mqa-logits-backend --dsa-prefill-backend --dsa-topk-backend --dsa-triton-union
    --dsv4-attn-backend --dsv4-prefill-backend --dynamic-batch-tokenizer-batch-size
    --dynamic-batch-tokenizer-batch-timeout --encoder-bootstrap-port --encoder-register-urls
    --encoder-transfer-backend --encoder-urls --engine-info-bootstrap-port --ep-dispatch-algorithm
    --eplb-algorithm --eplb-min-rebalancing-utilization-threshold --eplb-rebalance-layers-per-chunk
    --eplb-rebalance-num-iterations --expert-balancedness-report-mode --expert-distribution-recorder-mode
    --export-metrics-to-file-dir --extra-metric-labels --fastapi-root-path --file-storage-path
    --flashinfer-a2a-dispatch-type --flashinfer-allreduce-fusion-backend --flashinfer-autotune-skip-ops
    --flashinfer-mxfp4-moe-precision --flexkv-config-file --forward-hooks --forward-pass-metrics-ipc-name
    --forward-pass-metrics-worker-id --fp4-gemm-backend --fp8-gemm-backend --fuseep-mode --gated-launch-port
    --gc-threshold --gc-warning-threshold-secs --generation-tokens-buckets --gpu-id-step --grammar-backend
    --grpc-http-sidecar-port --grpc-port --grpc-response-timeout-secs --hf-chat-template-name
    --hicache-host-memory-fraction --hicache-host-memory-mode --hicache-io-backend --hicache-mem-layout
    --hicache-ratio --hicache-size --hicache-storage-backend --hicache-storage-backend-extra-config
    --hicache-storage-prefetch-policy --hicache-storage-prefetch-retry-max-attempts
    --hicache-storage-prefetch-retry-poll-interval --hicache-write-policy --host
    --http2-initial-connection-window-size --http2-max-concurrent-streams --image-processor-backend
    --init-expert-location --kv-canary --kv-canary-real-data --kv-canary-sweep-interval --kv-events-config
    --limit-mm-data-per-request --linear-attn-backend --linear-attn-decode-backend --linear-attn-prefill-backend
    --linear-attn-verify-backend --lmcache-config-file --load-balance-method --load-format
    --load-publish-endpoint --load-snapshot-publish-interval --load-watch-interval --log-level --log-level-http
    --log-requests-format --log-requests-level --log-requests-target --lora-backend --lora-drain-wait-threshold
    --lora-eviction-policy --mamba-backend --mamba-cache-philox-rounds --max-loaded-loras --max-lora-chunk-size
    --max-prefill-tokens --max-queued-requests --media-url-max-file-size-mb --min-free-slots-delay
    --mm-attention-backend --mm-feature-transport --mm-io-worker-num --mm-max-concurrent-calls
    --mm-per-request-timeout --mm-process-config --mm-processor-worker-num --model-checksum
    --model-config-parser --model-impl --model-loader-extra-config --modelexpress-config
    --modelopt-checkpoint-restore-path --modelopt-checkpoint-save-path --modelopt-export-path --moe-a2a-backend
    --moe-runner-backend --mooncake-ib-device --msprobe-dump-config --multi-item-scoring-delimiter
    --nccl-init-addr --nccl-port --nnodes --node-rank --nsa-decode-backend --nsa-prefill-backend
    --num-continuous-decode-steps --num-reserved-decode-tokens --numa-node --optimistic-prefill-attempts
    --otlp-service-name --otlp-traces-endpoint --ple-offload-backend --ple-offload-dir --port
    --pp-async-batch-depth --pp-max-micro-batch-size --preferred-sampling-params --prefill-attention-backend
    --prefill-decode-interval --prefill-decode-interval-min-bs --prefill-delayer-forward-passes-buckets
    --prefill-delayer-max-delay-ms --prefill-delayer-max-delay-passes --prefill-delayer-queue-min-ratio
    --prefill-delayer-token-usage-low-watermark --prefill-delayer-wait-seconds-buckets --prefill-max-requests
    --priority-scheduling-preemption-threshold --prompt-tokens-buckets --radix-cache-backend
    --radix-eviction-policy --radix-eviction-policy-config --random-seed --reasoning-parser
    --remote-instance-weight-loader-backend --remote-instance-weight-loader-seed-instance-ip
    --remote-instance-weight-loader-seed-instance-service-port
    --remote-instance-weight-loader-send-weights-group-ports --retraction-policy
    --return-aux-hidden-state-layer-ids --return-hidden-states-mode --revision --rl-on-policy-target
    --rl-quant-profile --sampling-backend --sampling-defaults --sampling-mask-max-tokens
    --schedule-conservativeness --schedule-policy --scheduler-recv-interval --served-model-name --sidecar
    --sidecar-args --sm-group-num --smg-http-sidecar-port --soft-watchdog-timeout --spec-trace-dir
    --speculative-accept-threshold-acc --speculative-accept-threshold-single --speculative-adaptive-config
    --speculative-attention-mode --speculative-dflash-block-size --speculative-domino-candidate-pool-size
    --speculative-draft-attention-backend --speculative-draft-load-format --speculative-draft-model-revision
    --speculative-dsa-topk-backend --speculative-dspark-block-size --speculative-dspark-confidence-sts-path
    --speculative-dspark-sps-table-path  --speculative-moe-a2a-backend
    --speculative-moe-runner-backend --speculative-ngram-branch-length --speculative-ngram-capacity
    --speculative-ngram-external-corpus-max-tokens --speculative-ngram-external-corpus-path
    --speculative-ngram-external-sam-budget --speculative-ngram-match-type --speculative-ngram-max-bfs-breadth
    --speculative-ngram-max-match-window-size --speculative-ngram-max-trie-depth
    --speculative-ngram-min-bfs-breadth --speculative-ngram-min-match-window-size
    --speculative-token-map --ssl-ca-certs --ssl-certfile --ssl-keyfile --ssl-keyfile-password
    --startup-weight-load-mode --stream-interval --tbo-token-distribution-threshold --tokenizer-backend
    --tokenizer-metrics-allowed-custom-labels --tokenizer-metrics-custom-labels-header --tokenizer-mode
    --tokenizer-path --tokenizer-worker-num --tool-call-parser --tool-server --torch-compile-max-bs
    --trace-modules --triton-attention-num-kv-splits --triton-attention-split-tile-size
    --unified-cache-external-linker-backend --unified-cache-external-linker-config
    --uvicorn-access-log-exclude-prefixes --warmups --watchdog-timeout --watermark-config --weight-cache-timeout
    --weight-loader-prefetch-num-threads --weight-version
""".split()
"""Flags with a value that does not matter to memory."""

ALONE = """
    --abort-on-priority-when-disabled --allow-auto-truncate --checkpoint-engine-wait-weights-before-ready
    --collect-tokens-histogram --constrained-json-disable-any-whitespace --debug-cuda-graph
    --delete-ckpt-after-loading --disable-aiter-allreduce-fusion-in-decode
    --disable-aiter-allreduce-fusion-in-prefill --disable-attn-tp-gather --disable-chunked-prefix-cache
    --disable-cuda-graph-padding --disable-custom-all-reduce --disable-fast-image-processor
    --disable-flashinfer-autotune --disable-flashinfer-cutlass-moe-fp4-allgather --disable-outlines-disk-cache
    --disable-overlap-schedule --disable-prefill-cuda-graph --disable-priority-preemption
    --disable-shared-experts-fusion --disable-tokenizer-batch-decode
    --disaggregation-decode-enable-offload-kvcache --disaggregation-decode-enable-radix-cache
    --disaggregation-enable-kv-checksum --enable-adaptive-dispatch-to-encoder --enable-aiter-allreduce-fusion
    --enable-attn-tp-input-scattered --enable-broadcast-mm-inputs-process --enable-cache-report
    --enable-cudagraph-gc --enable-custom-logit-processor --enable-deterministic-inference
    --enable-dp-attention-local-control-broadcast --enable-dp-lm-head --enable-draft-weights-cpu-backup
    --enable-dsa-fused-indexer --enable-dynamic-batch-tokenizer --enable-dynamic-chunking
    --enable-expert-distribution-metrics --enable-flashinfer-allreduce-fusion --enable-flashinfer-autotune
    --enable-flexkv --enable-forward-pass-metrics --enable-fused-moe-sum-all-reduce --enable-fused-qk-norm-rope
    --enable-hicache --enable-hierarchical-cache --enable-http-worker-reuseport --enable-http2
    --enable-layernorm-sp --enable-layerwise-nvtx-marker --enable-lean-attention --enable-linker-mla-dedup
    --enable-lmcache --enable-lora-overlap-loading --enable-mamba-cache-stochastic-rounding
    --enable-megamoe-for-layernorm-sp --enable-memory-saver --enable-metrics --enable-metrics-for-all-schedulers
    --enable-mfu-metrics --enable-mis --enable-mixed-chunk --enable-mscclpp --enable-multimodal
    --enable-nan-detection --enable-nccl-nvls --enable-p2p-check --enable-pd-role-switch
    --enable-precise-embedding-interpolation --enable-prefill-delayer --enable-priority-scheduling
    --enable-profile-cuda-graph --enable-quant-communications --enable-request-time-stats-logging
    --enable-response-store --enable-return-aux-hidden-states --enable-return-hidden-states
    --enable-return-indexer-topk --enable-return-routed-experts --enable-scattered-sconv
    --enable-session-radix-cache --enable-single-batch-overlap --enable-ssl-refresh --enable-streaming-session
    --enable-strict-thinking --enable-symm-mem --enable-tf32-matmul --enable-tokenizer-batch-encode
    --enable-torch-compile --enable-torch-compile-debug-mode --enable-torch-symm-mem
    --enable-tp-lm-head-all-to-all --enable-trace --enable-two-batch-overlap
    --enable-unified-cache-external-linker --enable-w4a4-mxfp4-megamoe --enable-waterfill --enable-watermark
    --enable-weights-cpu-backup --enforce-disable-flashinfer-allreduce-fusion --enforce-shared-experts-fusion
    --export-metrics-to-file --flashinfer-mla-disable-ragged --grpc-mode --incremental-streaming-output
    --is-embedding --keep-mm-feature-on-device --log-requests --lora-strict-loading --mlx-enable-sampling
    --mm-enable-dp-encoder --pre-warm-nccl --prefill-round-robin-balance
    --remote-instance-weight-loader-start-seed-via-transfer-engine --return-input-ids --return-output-ids
    --schedule-low-priority-values-first --show-time-cost --skip-server-warmup --skip-tokenizer-init
    --sleep-on-idle --smg-grpc-mode --speculative-adaptive
    --speculative-dspark-align-verify-tokens-to-graph-tier --speculative-enable-w4a4-mxfp4-megamoe
    --speculative-use-block-verification --speculative-use-rejection-sampling --stream-output
    --stream-response-default-include-usage --strip-thinking-cache --triton-attention-reduce-in-fp32
    --trust-mm-content-hashes --trust-remote-code --trust-request-chat-template --use-ray
    --weight-loader-disable-mmap --weight-loader-drop-cache-after-load --weight-loader-prefetch-checkpoints
""".split()
"""Flags without a value that do not matter to it."""

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
        "--speculative-num-steps": Flag("speculative_num_steps", NUMBER),
        "--speculative-eagle-topk": Flag("speculative_eagle_topk", NUMBER),
        "--enable-lora": Flag("enable_lora", TRUE),
        "--lora-paths": Flag("lora_paths", WORDS),
        "--max-lora-rank": Flag("max_lora_rank"),
        "--max-loras-per-batch": Flag("max_loras_per_batch"),
        "--lora-target-modules": Flag("lora_target_modules", WORDS),
        "--enable-eplb": Flag("enable_eplb", TRUE),
        "--ep-num-redundant-experts": Flag("ep_num_redundant_experts"),
        "--moe-dense-tp-size": Flag("moe_dense_tp_size"),
        "--mamba-full-memory-ratio": Flag("mamba_full_memory_ratio", REAL),
        "--max-mamba-cache-size": Flag("max_mamba_cache_size"),
        "--mamba-ssm-dtype": Flag("mamba_ssm_dtype", WORD),
        "--disable-hybrid-swa-memory": Flag("disable_hybrid_swa_memory", TRUE),
        "--cuda-graph-bs": Flag("cuda_graph_max_bs", LARGEST),
        "--cuda-graph-max-bs-decode": Flag("cuda_graph_max_bs"),
        "--cuda-graph-bs-decode": Flag("cuda_graph_max_bs", LARGEST),
        "--disable-decode-cuda-graph": Flag("disable_cuda_graph", TRUE),
        "--speculative-algorithm": Flag("speculative_algorithm", WORD),
        "--expert-distribution-recorder-buffer-size": Flag("expert_distribution_recorder_buffer_size"),
    },
    harmless=frozenset((*HARMLESS, *ALONE)),
    alone=frozenset(ALONE),
    variables=ALLOCATOR,
    refused={
        "--attention-context-parallel-size": "ranks that share the tokens",
        "--attention-data-parallel-size": "other ranks for parts of a layer",
        "--attn-cp-size": "ranks that share the tokens",
        "--attn-dp-size": "other ranks for parts of a layer",
        "--c128-page-size": "another cache",
        "--config": "a file of flags",
        "--cp-strategy": "ranks that share the tokens",
        "--cpu-offload-gb": "weights in the host's memory",
        "--cuda-graph-bs-prefill": "graphs of pieces",
        "--cuda-graph-config": "graphs of pieces",
        "--cuda-graph-max-bs-prefill": "graphs of pieces",
        "--cuda-graph-max-seq-len-prefill": "graphs of pieces",
        "--cuda-graph-prefill-max-context": "graphs of pieces",
        "--custom-weight-loader": "another way to load",
        "--dcp-replicate-q-proj": "ranks that share the tokens",
        "--dcp-size": "ranks that share the tokens",
        "--decode-context-parallel-size": "ranks that share the tokens",
        "--decrypted-config-file": "another way to load",
        "--decrypted-draft-config-file": "another way to load",
        "--dllm-algorithm": "a model of diffusion",
        "--dllm-algorithm-config": "a model of diffusion",
        "--dllm-fdfo": "a model of diffusion",
        "--ds-channel-config-path": "sparse keys",
        "--ds-heavy-channel-num": "sparse keys",
        "--ds-heavy-channel-type": "sparse keys",
        "--ds-heavy-token-num": "sparse keys",
        "--ds-sparse-decode-threshold": "sparse keys",
        "--dwdp-size": "ranks that share the tokens",
        "--elastic-ep-backend": "ranks that come and go",
        "--elastic-ep-initial-size": "ranks that come and go",
        "--elastic-ep-join-mode": "ranks that come and go",
        "--elastic-ep-join-rank-offset": "ranks that come and go",
        "--elastic-ep-scale-timeout": "ranks that come and go",
        "--enable-amd-monokernel": "a step in one kernel",
        "--enable-cp-decode-attn-tp": "ranks that share the tokens",
        "--enable-decoder-swa-bounded-replay": "another cache",
        "--enable-deepseek-v4-fp4-indexer": "another cache",
        "--enable-dense-mlp-attn-tp": "other ranks for parts of a layer",
        "--enable-double-sparsity": "sparse keys",
        "--enable-dsa-cache-layer-split": "ranks that share the tokens",
        "--enable-elastic-expert-backup": "ranks that come and go",
        "--enable-encoder-swa-bounded-replay": "another cache",
        "--enable-fp32-lm-head": "a head in four bytes",
        "--enable-hisparse": "another cache",
        "--enable-int8-mamba-checkpoint": "another way to keep states",
        "--enable-kv-cache-sharding": "ranks that share the tokens",
        "--enable-linear-replayssm": "another way to keep states",
        "--enable-linear-replayssm-spec": "another way to keep states",
        "--enable-mm-global-cache": "a cache of pictures",
        "--enable-multi-layer-eagle": "a draft in another format",
        "--enable-nsa-prefill-context-parallel": "ranks that share the tokens",
        "--enable-nvidia-megakernel": "a step in one kernel",
        "--enable-page-major-kv-layout": "another cache",
        "--enable-paged-experts": "experts in the host's memory",
        "--enable-pdmux": "streams that share the processors",
        "--enable-piecewise-cuda-graph": "graphs of pieces",
        "--enable-prefill-cp": "ranks that share the tokens",
        "--enable-prefix-mm-cache": "a cache of pictures",
        "--enable-shared-experts-attn-tp": "other ranks for parts of a layer",
        "--enable-unified-memory": "another cache",
        "--encoder-only": "a part of the model",
        "--experts-shared-outer-loras": "adapters of experts",
        "--hierarchical-sparse-attention-extra-config": "another cache",
        "--hisparse-config": "another cache",
        "--hybrid-kvcache-ratio": "pools of another share",
        "--int8-mamba-ckpt-size": "another way to keep states",
        "--json-model-override-args": "another config than the model's",
        "--kt-cpuinfer": "experts in the host's memory",
        "--kt-max-deferred-experts-per-token": "experts in the host's memory",
        "--kt-method": "experts in the host's memory",
        "--kt-num-gpu-experts": "experts in the host's memory",
        "--kt-threadpool-count": "experts in the host's memory",
        "--kt-weight-path": "experts in the host's memory",
        "--language-model-only": "a part of the model",
        "--language-only": "a part of the model",
        "--linear-replayssm-cache-len": "another way to keep states",
        "--lora-use-virtual-experts": "adapters of experts",
        "--mamba-max-states-per-path": "another way to keep states",
        "--mamba-radix-cache-strategy": "another way to keep states",
        "--mamba-track-interval": "another way to keep states",
        "--max-ep-size": "ranks that come and go",
        "--mm-global-cache-backend": "a cache of pictures",
        "--mm-preprocess-cache-size-mb": "a cache of pictures",
        "--modelopt-quant": "weights quantized as they are loaded",
        "--moe-data-parallel-size": "other ranks for parts of a layer",
        "--moe-dp-size": "other ranks for parts of a layer",
        "--monokernel-backend": "a step in one kernel",
        "--offload-group-size": "weights in the host's memory",
        "--offload-mode": "weights in the host's memory",
        "--offload-num-in-group": "weights in the host's memory",
        "--offload-prefetch-step": "weights in the host's memory",
        "--paged-experts-num-resident": "experts in the host's memory",
        "--pdmux-config-path": "streams that share the processors",
        "--piecewise-cuda-graph-compiler": "graphs of pieces",
        "--piecewise-cuda-graph-max-tokens": "graphs of pieces",
        "--piecewise-cuda-graph-tokens": "graphs of pieces",
        "--ple-offload-embedding": "experts in the host's memory",
        "--prefill-kv-cache-dequant-dtype": "another cache",
        "--prefill-only-disable-kv-cache": "no cache",
        "--qsa-indexer-dtype": "another cache",
        "--quantization-param-path": "weights quantized as they are loaded",
        "--quantize-and-serve": "weights quantized as they are loaded",
        "--shared-experts-tp-size": "other ranks for parts of a layer",
        "--speculative-draft-kv-cache-dtype": "a draft in another format",
        "--speculative-draft-model-quantization": "a draft in another format",
        "--speculative-draft-sink-size": "a draft in another format",
        "--speculative-draft-window-size": "a draft in another format",
        "--swa-prefix-tails": "another cache",
        "--torchao-config": "torchao's formats",
        "--uno-lora-path": "adapters of experts",
        "--weight-cache-mode": "another way to load",
        "--weight-cache-socket": "another way to load",
    },
)
