"""Megatron-LM's arguments: a script that starts `pretrain_*.py`, or its list of arguments.

Read: Megatron-LM core 0.16 (`megatron/training/arguments.py`). The arguments make the model too.
"""

from __future__ import annotations

from typing import Any

from weigh.errors import InputError
from weigh.jobs.documents import Document
from weigh.jobs.job import Book, Job, flag

HARMLESS = """
    nproc_per_node nnodes node_rank master_* rdzv_* train_* lr lr_* min_lr decoupled_* weight_decay* adam_*
    init_method_* log_* tensorboard_* wandb_* save* load* eval_* exit_* ckpt_* dist_ckpt* data_* tokenizer_*
    vocab_file merge_file split seed num_workers mock_data no_load_* no_save_* finetune
    distributed_timeout_minutes distributed_backend use_mcore_models timing_*
    profile* manual_gc* no_mmap_bin_files tiktoken_pattern
    empty_unused_memory_level calculate_per_token_loss override_opt_param_scheduler global_batch_size bias_*
    no_bias_dropout_fusion no_bias_*_fusion use_transformer_engine_op_fuser
    rotary_* norm_epsilon use_flash_attn train_iters position_embedding_type
    normalization apply_layernorm_1p clip_grad rampup_batch_size no_rope_fusion
    overlap_param_gather tp_comm_overlap_* initial_loss_scale
    check_for_nan_in_loss_and_grad moe_aux_loss_coeff
    moe_router_load_balancing_type enable_experimental no_check_for_nan_in_loss_and_grad
    use_rotary_position_embeddings recompute_num_layers recompute_method fp8_amax_compute_algo fp8_margin fp8_interval
    make_vocab_size_divisible_by accumulate_allreduce_grads_in_fp32
"""
MODEL = """
    num_layers hidden_size ffn_hidden_size num_attention_heads group_query_attention num_query_groups kv_channels
    max_position_embeddings vocab_size padded_vocab_size untie_embeddings_and_output_weights swiglu
    disable_bias_linear add_qkv_bias qk_layernorm num_experts moe_router_topk multi_latent_attention
    mtp_num_layers moe_shared_expert_intermediate_size moe_ffn_hidden_size moe_layer_freq
""".split()
ALSO_MODEL = (
    *("position_embedding_type", "normalization", "make_vocab_size_divisible_by", "use_rotary_position_embeddings"),
    "tensor_model_parallel_size",
)
"""Arguments that make the model, and something else beside it."""
AXES = {"tensor": "tensor_model_parallel_size", "pipeline": "pipeline_model_parallel_size"} | {
    "context": "context_parallel_size",
    "expert": "expert_model_parallel_size",
}
SWITCHES = {
    "sequence_parallel": ("sequence_parallel", True),
    "use_distributed_optimizer": ("shard", "distributed_optimizer"),
    "grad_reduce_in_bf16": ("grad_reduce_in_bf16", True),
    "use_precision_aware_optimizer": ("precision_aware_optimizer", True),
    "no_masked_softmax_fusion": ("masked_softmax_fusion", False),
    "attention_softmax_in_fp32": ("softmax_in_fp32", True),
    "apply_query_key_layer_scaling": ("softmax_in_fp32", True),
    "tp_comm_overlap": ("overlap_tensor_communication", True),
    "overlap_moe_expert_parallel_comm": ("overlap_expert_communication", True),
    "overlap_grad_reduce": ("overlap_grad_reduce", True),
    "deterministic_mode": ("deterministic", True),
    "no_gradient_accumulation_fusion": ("gradient_accumulation_fusion", False),
    "no_create_attention_mask_in_dataloader": ("mask_in_batch", False),
}
"""Arguments without a value that are settings; unknown ones are refused where the words are taken."""
VALUES = {
    "attention_dropout": "attention_dropout",
    "hidden_dropout": "hidden_dropout",
    "expert_tensor": "expert_tensor_parallel_size",
    "context_exchange": "cp_comm_type",
    "capacity_factor": "moe_expert_capacity_factor",
    "virtual_pipeline": "num_virtual_stages_per_pipeline_rank",
    "exp_avg_dtype": "exp_avg_dtype",
    "exp_avg_sq_dtype": "exp_avg_sq_dtype",
    "virtual_pipeline_group": "microbatch_group_size_per_virtual_pipeline_stage",
    "replicas": "num_distributed_optimizer_instances",
}
"""Settings, and the arguments whose value is theirs."""
FUSED_LOSSES = {"native": "fused", "te": "te_fused"}
"""`--cross-entropy-fusion-impl`."""
UNEVEN = {
    "first": "decoder_first_pipeline_num_layers",
    "last": "decoder_last_pipeline_num_layers",
    "embedding": "account_for_embedding_in_pipeline_split",
    "loss": "account_for_loss_in_pipeline_split",
}
"""Arguments that deal layers unevenly."""
FSDP_DTYPES = ("megatron_fsdp_main_params_dtype", "megatron_fsdp_main_grads_dtype", "megatron_fsdp_grad_comm_dtype")
"""Arguments of Megatron-FSDP that may say fp32 only."""
REFUSED = (
    *("use_torch_fsdp2", "optimizer_cpu_offload"),
    *("cpu_offloading_num_layers", "main_params_dtype"),
    *("distribute_saved_activations", "moe_shared_expert_overlap"),
    *("virtual_pipeline_model_parallel_size", "enable_cuda_graph"),
    *("external_cuda_graph", "use_te_rng_tracker", "ddp_bucket_size", "ddp_num_buckets", "attention_backend"),
    *("fsdp_double_buffer", "nccl_ub", "megatron_fsdp_version"),
    *("cuda_graph_impl", "fine_grained_activation_offloading", "cpu_offloading", "delay_wgrad_compute"),
    *("use_te_activation_func", "experimental_attention_variant", "moe_latent_size"),
    *("first_last_layers_bf16", "no_fp8_wgrad", "fp8_dot_product_attention"),
    *("fp8_multi_head_attention", "attention_output_gate", "moe_use_legacy_grouped_gemm", "fp4_format"),
)


def recognises(document: Document) -> bool:
    """Whether the arguments say how many layers, and how large a micro-batch is, in Megatron's words."""
    return document.has("num_layers", "hidden_size", "micro_batch_size")


def read(document: Document, ignored: frozenset[str]) -> Job:
    """The training that the arguments ask for.

    Raises:
        InputError: an argument that is needed has no value that can be read.
    """
    for name in (*MODEL, *AXES.values(), "micro_batch_size", "seq_length", "nproc_per_node", "nnodes"):
        if "$" in str(document.keys.get(name, "")):
            hint = "Write the number in its place."
            raise InputError(
                f"is {document.keys[name]}", where=f"{document.where}: --{name.replace('_', '-')}", hint=hint
            )
    book = Book(document, "megatron", ignored, HARMLESS)
    if document.conditional:
        what = "every argument that the script sets under a condition is set"
        book.assume(what, "the script was read, not run", "another branch can set others")
    book.copy("batch", "micro_batch_size")
    book.copy("sequence", "seq_length", "encoder_seq_length")
    for word, name in AXES.items():
        book.copy(word, name)
    book.copy("nodes", "nnodes")
    book.copy("gpus_per_node", "nproc_per_node")
    _accumulation(book)
    for key, dtype in (("bf16", "bf16"), ("fp16", "fp16")):
        if flag(book.take(key)):
            book.say("dtype", dtype, key)
    key, norm = book.number("clip_grad")
    book.say("clip", norm > 0, key) if norm is not None else book.default("clip", True)
    key, optimizer = book.found("optimizer")
    book.say("optimizer", "adamw" if optimizer == "adam" else optimizer, key) if optimizer else book.default(
        "optimizer", "adamw"
    )
    _recomputing(book)
    for key, (word, value) in SWITCHES.items():
        if flag(book.take(key)):
            book.say(word, value, key)
    for word, key in VALUES.items():
        book.copy(word, key)
    _sharing(book)
    _fp8(book)
    key, dtype = book.found("main_grads_dtype")
    if dtype == "bf16":
        book.say("grad_reduce_in_bf16", True, key)
    elif dtype not in (None, "fp32"):
        book.refusal(key, dtype)
    _layers(book)
    book.refuse(*REFUSED)
    return book.job(model=_model(book), runtime="megatron", own_loop=True)


def _fp8(book: Book) -> None:
    """Products in FP8, and weights that are FP8 themselves."""
    key, form = book.found("fp8_format", "fp8")
    recipe, history = book.take("fp8_recipe") or "delayed", book.take("fp8_amax_history_len")
    params = flag(book.take("fp8_param_gather", "fp8_param"))
    if form is None:
        return
    book.say("fp8", recipe, key)
    if params:
        book.say("fp8_params", True, "fp8_param_gather")
    if history is not None:
        book.say("fp8_amax_history", history, "fp8_amax_history_len")


def _sharing(book: Book) -> None:
    """Megatron-FSDP, in place of the distributed optimizer."""
    for key in FSDP_DTYPES:
        if (dtype := book.take(key)) not in (None, "fp32"):
            book.refusal(key, dtype)
    strategy = book.take("data_parallel_sharding_strategy") or "no_shard"
    if flag(book.take("use_megatron_fsdp")):
        if strategy == "no_shard":
            book.refusal("use_megatron_fsdp", "without --data-parallel-sharding-strategy")
        book.say("shard", "megatron_fsdp", "use_megatron_fsdp")
        book.say("sharding_strategy", strategy, "data_parallel_sharding_strategy")


def _layers(book: Book) -> None:
    """Which layers there are, how they are dealt to virtual stages, and how the loss is computed."""
    if book.take("transformer_impl") == "local":
        book.say("local_layers", True, "transformer_impl")
    key, each = book.found("num_layers_per_virtual_pipeline_stage")
    if each is not None:
        of_a_stage = book.document.keys["num_layers"] // (book.words.get("pipeline", 1))
        if of_a_stage % each:
            book.refusal(key, each)
        book.say("virtual_pipeline", of_a_stage // each, key)
    book.copy("pipeline_layout", "pipeline_model_parallel_layout")
    dealt = {name: (key, value) for name, key in UNEVEN.items() if (value := book.take(key)) not in (None, False)}
    if dealt:
        stages = book.words.get("pipeline", 1), book.words.get("virtual_pipeline", 1)
        numbers = {name: int(value) for name, (_, value) in dealt.items()}
        layout = uneven(book.document.keys["num_layers"], *stages, **numbers)
        key, value = next(iter(dealt.values()))
        book.refusal(key, value) if layout is None else book.say("pipeline_layout", layout, key)
    limit = book.take("wgrad_deferral_limit")
    if flag(book.take("defer_embedding_wgrad_compute")):
        book.say("defer_embedding_wgrad", limit or 0, "defer_embedding_wgrad_compute")
    implementation = book.take("cross_entropy_fusion_impl") or "native"
    if flag(book.take("cross_entropy_loss_fusion")):
        book.say("loss", FUSED_LOSSES.get(implementation, implementation), "cross_entropy_loss_fusion")
    dispatcher = book.take("moe_token_dispatcher_type") or "allgather"
    key = "no_bias_swiglu_fusion" if flag(book.document.keys.get("swiglu")) else "no_bias_gelu_fusion"
    if flag(book.take(key)):
        book.say("activation_fusion", False, key)
    grouped, fused = flag(book.take("moe_grouped_gemm")), flag(book.take("moe_permute_fusion"))
    router_dtype = book.take("moe_router_dtype")
    if book.document.keys.get("num_experts"):
        book.say("grouped_experts", grouped, "moe_grouped_gemm")
        book.say("permute_fusion", fused, "moe_permute_fusion")
        if router_dtype is not None:
            book.say("router_dtype", router_dtype, "moe_router_dtype")
        if dispatcher in ("alltoall", "allgather"):
            book.say("token_dispatcher", dispatcher, "moe_token_dispatcher_type")
        else:
            book.refusal("moe_token_dispatcher_type", dispatcher)


def uneven(
    layers: int,
    stages: int,
    chunks: int,
    *,
    first: int | None = None,
    last: int | None = None,
    embedding: int = 0,
    loss: int = 0,
) -> str | None:
    """The layout of stages of which some have layers of their own number; None where the rest do not divide.

    `first` and `last` are layers of those stages; `embedding` and `loss` count as a layer (`get_num_layers_to_build`).

    >>> uneven(12, 4, 1, first=2, last=2), uneven(6, 4, 2, embedding=1, loss=1)
    ('Ett|tttt|tttt|ttL', 'E|t|t|t|t|t|t|L')
    """
    ends = [n for n in (first, last) if n is not None]
    middle, rest = divmod(layers + embedding + loss - sum(ends), max(stages - len(ends), 1))
    each = [middle] * stages
    each[0], each[-1] = first or each[0], last or each[-1]
    if rest or any(n % chunks for n in each):
        return None
    counts = [n // chunks for _ in range(chunks) for n in each]
    counts[0] -= embedding
    counts[-1] -= loss
    return "E" + "|".join("t" * n for n in counts) + "L" if sum(counts) == layers else None


def _model(book: Book) -> dict[str, Any]:
    """The model in Megatron's words, which `weigh` takes as a config."""
    document = book.document
    found = {name: document.keys[name] for name in (*MODEL, *ALSO_MODEL) if name in document.keys}
    for name in MODEL:
        book.take(name)
    return found


def _accumulation(book: Book) -> None:
    """Micro-batches in a step: the global batch over those of all groups that have data of their own."""
    total = book.document.keys.get("global_batch_size")
    sizes = {
        name: book.words.get(name, 1) for name in ("batch", "nodes", "gpus_per_node", "tensor", "pipeline", "context")
    }
    if not isinstance(total, int) or not all(isinstance(n, int) for n in sizes.values()):
        return
    shares = sizes["nodes"] * sizes["gpus_per_node"] // (sizes["tensor"] * sizes["pipeline"] * sizes["context"])
    if shares and total % (sizes["batch"] * shares) == 0:
        book.say("accumulation", total // (sizes["batch"] * shares), "global_batch_size")


def _recomputing(book: Book) -> None:
    key, granularity = book.found("recompute_granularity")
    if flag(book.take("recompute_activations")):
        key, granularity = "recompute_activations", "selective"
    if granularity is None:
        return
    layers, method = book.take("recompute_num_layers"), book.take("recompute_method")
    modules = book.take("recompute_modules")
    if granularity == "full" and (method, layers) not in ((None, None), ("uniform", None), ("uniform", 1)):
        book.refusal("recompute_method", f"{method} {layers}")
    if modules is not None and granularity == "selective":
        names = modules if isinstance(modules, list) else str(modules).replace(",", " ").split()
        book.say("recompute_modules", tuple(names), "recompute_modules")
    book.say("checkpointing", granularity, key)
