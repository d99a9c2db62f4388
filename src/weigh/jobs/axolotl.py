"""axolotl's YAML. Read: axolotl 0.19 (`utils/config/__init__.py`, `core/builders/base.py`, `utils/schemas`)."""

from __future__ import annotations

from weigh.jobs import hugging
from weigh.jobs.documents import Document
from weigh.jobs.job import Book, Job, flag

HARMLESS = f"""
    {hugging.HARMLESS} model_type tokenizer_* is_llama_derived_model is_mistral_derived_model strict datasets
    test_datasets dataset_* dataset_prepared_path val_set_size wandb_* mlflow_* comet_* num_epochs max_steps
    lr_scheduler* learning_rate train_on_inputs early_stopping_patience eval_* evals_per_epoch saves_per_epoch
    special_tokens tokens chat_template* debug default_system_message shuffle_* local_rank skip_prepare_dataset
    sample_packing* pad_to_sequence_len eval_sample_packing lora_alpha xformers_attention save_first_step
    trust_remote_code revision_of_model base_model_config base_model_ignore_patterns plugins log_* use_tensorboard
    lora_model_dir hub_* group_by_length resize_token_embeddings_to_32x seed weight_decay s2_attention cosine_*
    adam_* warmup_* remove_unused_columns total_num_tokens flash_optimum auto_resume_from_checkpoints
    processor_type loss_watchdog_* eot_tokens lora_fan_in_fan_out pretraining_dataset streaming* swanlab_* use_swanlab
    use_wandb use_otel_metrics otel_* hf_use_auth_token device_map low_cpu_mem_usage do_causal_lm_eval
    curriculum_sampling ddp_find_unused_parameters pretrain_multipack_*
"""
AXES = {
    "replicas": ("dp_replicate_size",),
    "tensor": ("tensor_parallel_size",),
    "context": ("context_parallel_size", "sequence_parallel_degree"),
    "expert": ("expert_parallel_size",),
}
"""Settings for numbers of devices that share something; beside them `dp_shard_size` says how many are left."""
REFUSED = (
    *("load_in_8bit", "load_in_4bit", "gptq", "fp8", "rl", "reward_model", "process_reward_model"),
    *("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "chunked_cross_entropy", "relora"),
    "liger_cross_entropy",
    *(
        "unfrozen_parameters",
        "max_memory",
        "activation_offloading",
        "qlora_sharded_model_loading",
        "noisy_embedding_alpha",
    ),
    *("flash_attn_fuse_mlp", "flash_attn_cross_entropy", "flash_attn_rms_norm", "flash_attn_fuse_qkv", "quantization"),
    *("vllm", "qat", "neftune_noise_alpha", "unsloth_lora_mlp", "quantize_moe_experts", "diffusion", "llmcompressor"),
    *("use_kernels", "use_sonicmoe", "fused_attn_kernel", "reinit_weights"),
    *(
        "optimizer_cls_and_kwargs",
        "s2_attention",
        "gpu_memory_limit",
    ),
)


def recognises(document: Document) -> bool:
    """Whether it has a base model, and data or sizes in axolotl's words."""
    return document.has("base_model") and any(
        document.has(key) for key in ("micro_batch_size", "datasets", "sequence_len")
    )


def read(document: Document, ignored: frozenset[str]) -> Job:
    """The training that the file asks for."""
    book = Book(document, "axolotl", ignored, HARMLESS)
    book.copy("sequence", "sequence_len")
    _precision(book)
    hugging.optimizer(book, "optimizer")
    hugging.checkpointing(book, False, False)
    _attention(book)
    _liger(book)
    key, adapter = book.found("adapter")
    if adapter in ("lora", "qlora"):
        hugging.quantized(book, True, "all")
        if flag(book.take("lora_target_linear")):
            book.left["lora_target_modules"] = "all-linear"
        hugging.lora(book, "lora_target_modules", 8)
    elif adapter is not None:
        book.refusal(key, adapter)
    else:
        book.harmless += ("lora_*",)
    _shares(book)
    hugging.training_arguments(book, ("micro_batch_size",))
    _whole_batch(book)
    book.refuse(*REFUSED)
    book.assume(*hugging.FULL)
    deepspeed = book.take("deepspeed")
    files = (deepspeed,) if isinstance(deepspeed, str) else ()
    return book.job(model=book.take("base_model"), runtime="transformers", files=files)


def _whole_batch(book: Book) -> None:
    """`batch_size` is that of a step, in the place of `gradient_accumulation_steps`."""
    whole = book.whole("batch_size")
    batch = book.words.get("batch")
    if whole is not None and "accumulation" in book.defaults and isinstance(batch, int):
        book.say("accumulation", max(1, whole // batch), "batch_size")


def _precision(book: Book) -> None:
    """The model is loaded in the dtype that it is trained in, and runs under autocast all the same, but for "full"."""
    for key, dtype in (("bf16", "bf16"), ("bfloat16", "bf16"), ("fp16", "fp16"), ("float16", "fp16")):
        value = book.take(key)
        if value == "auto" or value == "full" or flag(value):
            book.say("dtype", dtype, key)
            book.say("autocast", "none" if value == "full" or "float" in key else dtype, key)
    if "dtype" not in book.words:
        book.default("dtype", "fp32")
        book.default("autocast", "none")


def _attention(book: Book) -> None:
    """`attn_implementation`, `attention`, or one switch for each."""
    key, name = book.found("attn_implementation", "attention")
    if name is not None:
        book.say("attention", {"flash": "flash_attention_2"}.get(str(name), name), key)
    for switch, word in (
        ("flash_attention", "flash_attention_2"),
        ("sdp_attention", "sdpa"),
        ("eager_attention", "eager"),
    ):
        if flag(book.take(switch)):
            book.say("attention", word, switch)
    book.refuse("xformers_attention", "flex_attention", "sage_attention")


def _liger(book: Book) -> None:
    if flag(book.take("cut_cross_entropy")):
        book.say("loss", "cut", "cut_cross_entropy")
    book.take("liger_layer_norm")  # no family that `weigh` puts Liger's kernels into has any
    wanted = {key: flag(book.take(key)) for key in ("liger_rope", "liger_rms_norm", "liger_glu_activation")}
    if all(wanted.values()):
        book.say("fused_kernels", "liger", "liger_rms_norm")
    else:
        for key, value in wanted.items():
            if value:
                book.refusal(key, value)
    if flag(book.take("liger_fused_linear_cross_entropy")):
        book.say("loss", "liger_fused_linear", "liger_fused_linear_cross_entropy")


def _shares(book: Book) -> None:
    """Over how many devices what is shared. FSDP: `use_orig_params` is off unless it is asked for."""
    shared = 1
    for word, keys in AXES.items():
        number = book.whole(*keys) or 1
        if number > 1:
            book.say(word, number, keys[0])
        shared *= number if word != "expert" else 1
    shards = book.whole("dp_shard_size")
    if shards is not None:
        book.say("gpus_per_node", shards * shared, "dp_shard_size")
    version = book.take("fsdp_version")
    settings = book.table("fsdp_config")
    wanted = book.take("fsdp")
    if not wanted and not settings:
        return
    if version is not None:
        settings["version"] = version
    hugging.fsdp(
        book, settings, "fsdp_config", flag(settings.get("fsdp_use_orig_params", settings.get("use_orig_params")))
    )
