"""`llama-server ...` and `llama-cli ...`: their flags.

Read: llama.cpp af6528e6d (`common/arg.cpp`) of 2026, and older names of the same flags.
"""

from __future__ import annotations

from weigh.jobs.commands import FALSE, MAYBE, NUMBER, TRUE, WORD, Command, Flag

HARMLESS = """
    --alias -a --api-key --api-key-file --api-prefix --cache-ram -cram --cache-reuse --chat-template
    --chat-template-file --chat-template-kwargs --checkpoint-min-step -cms --color -co --cpu-mask -C
    --cpu-mask-batch -Cb --cpu-range -Cr --cpu-range-batch -Crb --cpu-strict --cpu-strict-batch --ctx-checkpoints
    -ctxcp --defrag-thold -dt --dry-allowed-length --dry-base --dry-multiplier --dry-penalty-last-n
    --dry-sequence-breaker --dynatemp-exp --dynatemp-range --file -f --frequency-penalty --grammar --grammar-file
    --grp-attn-n -gan --grp-attn-w -gaw --hf-token -hft --host --in-prefix --in-suffix --json-schema -j
    --json-schema-file -jf --keep --log-colors --log-file --logit-bias -l --log-verbosity -lv --verbosity
    --media-path --min-p --mirostat --mirostat-ent --mirostat-lr --n-predict -n --predict --numa --path --poll
    --poll-batch --port --presence-penalty --prio --prio-batch --prompt -p --prompt-cache --reasoning -rea
    --reasoning-budget --reasoning-budget-message --reasoning-format --repeat-last-n --repeat-penalty
    --reverse-prompt -r --rope-freq-base --rope-freq-scale --rope-scale --rope-scaling --sampler-seq --sampling-seq
    --samplers --seed -s --sleep-idle-seconds --slot-prompt-similarity -sps --slot-save-path --ssl-cert-file
    --ssl-key-file --system-prompt -sys --system-prompt-file -sysf --tags --temp --temperature --threads -t
    --threads-batch -tb --threads-http --timeout -to --tools --top-k --top-n-sigma --top-nsigma --top-p --typical
    --typical-p --xtc-probability --xtc-threshold --yarn-attn-factor --yarn-beta-fast --yarn-beta-slow
    --yarn-ext-factor --yarn-orig-ctx --override-kv --fit-target -fitt --fit-ctx -fitc
""".split()

ALONE = """
    --cache-idle-slots --cache-prompt --check-tensors --cont-batching -cb -nocb --context-shift --conversation -cnv
    -no-cnv --direct-io -dio -ndio --escape -e --ignore-eos --interactive -i --interactive-first -if --jinja
    --log-disable --log-prefix --log-timestamps --metrics --mlock --multiline-input -mli --no-cache-prompt
    --no-cont-batching --no-context-shift --no-conversation --no-direct-io --no-display-prompt --no-escape --no-jinja
    --no-log-prefix --no-log-timestamps --no-perf --no-prefill-assistant --no-slots --no-ui --no-warmup --no-webui
    --offline --perf --prefill-assistant --prompt-cache-all --prompt-cache-ro --props --repack --reuse-port
    --simple-io --single-turn -st --slots --special -sp --spm-infill --ui --verbose -v --log-verbose --verbose-prompt
    --warmup --webui --no-repack -nr
""".split()

COMMAND = Command(
    engine="llama.cpp",
    starts=("llama-server", "llama-cli", "llama-completion", "llama-bench-server", "python -m llama_cpp.server"),
    flags={
        "--model": Flag("model", WORD),
        "-m": Flag("model", WORD),
        "--hf-repo": Flag("model", WORD),
        "-hf": Flag("model", WORD),
        "-hfr": Flag("model", WORD),
        "--ctx-size": Flag("ctx_size"),
        "-c": Flag("ctx_size"),
        "--parallel": Flag("concurrency"),
        "-np": Flag("concurrency"),
        "--gpu-layers": Flag("gpu_layers", WORD),
        "--n-gpu-layers": Flag("gpu_layers", WORD),
        "-ngl": Flag("gpu_layers", WORD),
        "--batch-size": Flag("batch_size"),
        "-b": Flag("batch_size"),
        "--ubatch-size": Flag("ubatch_size"),
        "-ub": Flag("ubatch_size"),
        "--flash-attn": Flag("flash_attn", MAYBE),
        "-fa": Flag("flash_attn", MAYBE),
        "--cache-type-k": Flag("cache_type_k", WORD),
        "-ctk": Flag("cache_type_k", WORD),
        "--cache-type-v": Flag("cache_type_v", WORD),
        "-ctv": Flag("cache_type_v", WORD),
        "--kv-unified": Flag("kv_unified", TRUE),
        "-kvu": Flag("kv_unified", TRUE),
        "-no-kvu": Flag("kv_unified", FALSE),
        "--swa-full": Flag("swa_full", TRUE),
        "--no-kv-offload": Flag("no_kv_offload", TRUE),
        "-nkvo": Flag("no_kv_offload", TRUE),
        "--kv-offload": Flag("no_kv_offload", FALSE),
        "-kvo": Flag("no_kv_offload", FALSE),
        "--split-mode": Flag("split_mode", WORD),
        "-sm": Flag("split_mode", WORD),
        "--tensor-split": Flag("tensor_split", WORD),
        "-ts": Flag("tensor_split", WORD),
        "--main-gpu": Flag("main_gpu", NUMBER),
        "-mg": Flag("main_gpu", NUMBER),
        "--override-tensor": Flag("override_tensor", WORD),
        "-ot": Flag("override_tensor", WORD),
        "--cpu-moe": Flag("cpu_moe", TRUE),
        "-cmoe": Flag("cpu_moe", TRUE),
        "--n-cpu-moe": Flag("n_cpu_moe"),
        "-ncmoe": Flag("n_cpu_moe"),
        "--no-mmap": Flag("no_mmap", TRUE),
        "--mmap": Flag("no_mmap", FALSE),
        "--no-op-offload": Flag("no_op_offload", TRUE),
        "--op-offload": Flag("no_op_offload", FALSE),
        "--no-host": Flag("no_host", TRUE),
        "--fit": Flag("fit", WORD),
        "-fit": Flag("fit", WORD),
        "--spec-draft-model": Flag("draft", WORD),
        "--model-draft": Flag("draft", WORD),
        "-md": Flag("draft", WORD),
        "--spec-draft-ngl": Flag("draft_gpu_layers", WORD),
        "--gpu-layers-draft": Flag("draft_gpu_layers", WORD),
        "--n-gpu-layers-draft": Flag("draft_gpu_layers", WORD),
        "-ngld": Flag("draft_gpu_layers", WORD),
        "--spec-draft-type-k": Flag("draft_cache_type_k", WORD),
        "--cache-type-k-draft": Flag("draft_cache_type_k", WORD),
        "-ctkd": Flag("draft_cache_type_k", WORD),
        "--spec-draft-type-v": Flag("draft_cache_type_v", WORD),
        "--cache-type-v-draft": Flag("draft_cache_type_v", WORD),
        "-ctvd": Flag("draft_cache_type_v", WORD),
        "--embedding": Flag("embeddings", TRUE),
        "--embeddings": Flag("embeddings", TRUE),
    },
    harmless=frozenset((*HARMLESS, *ALONE)),
    alone=frozenset(ALONE),
    environment={
        "LLAMA_ARG_N_PARALLEL": "--parallel",
        "LLAMA_ARG_BATCH": "--batch-size",
        "LLAMA_ARG_UBATCH": "--ubatch-size",
        "LLAMA_ARG_ENDPOINT_METRICS": "--metrics",
        "LLAMA_ARG_ENDPOINT_PROPS": "--props",
        "LLAMA_ARG_ENDPOINT_SLOTS": "--slots",
        "LLAMA_ARG_CONT_BATCHING": "--cont-batching",
        "LLAMA_ARG_": "--",
    },
    refused={
        "--spec-type": "speculative decoding",
        "--mmproj": "a projector",
        "-mm": "a projector",
        "--mmproj-url": "a projector",
        "-mmu": "a projector",
        "--lora": "adapters",
        "--lora-scaled": "adapters",
        "--control-vector": "control vectors",
        "--rpc": "devices of other machines",
        "--device": "devices by name",
        "-dev": "devices by name",
        "--pooling": "pooled embeddings",
        "--reranking": "a reranker",
        "--rerank": "a reranker",
        "--backend-sampling": "sampling on the device",
        "-bs": "sampling on the device",
        "--model-url": "a model by address",
        "-mu": "a model by address",
        "--docker-repo": "a model of Docker's registry",
        "-dr": "a model of Docker's registry",
        "--hf-file": "one file of a repository",
        "-hff": "one file of a repository",
    },
)
