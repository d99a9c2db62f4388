"""What the programs on top of transformers' Trainer share: its arguments, optimizers, adapters and ways to shard.

Read: transformers 5.23 (`training_args.py`, `trainer_optimizer.py`), accelerate 1.15
(`utils/dataclasses.py`), peft 0.21.
"""

from __future__ import annotations

from typing import Any

from weigh.errors import InputError
from weigh.jobs.job import Book, flag

IN_BACKWARD = {"optimizer_in_backward": True}
TORCHAO_BLOCK = {"optimizer_block": 256}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw_torch": {"optimizer": "adamw", "implementation": "foreach"},
    "adamw_torch_fused": {"optimizer": "adamw", "implementation": "fused"},
    "adamw_hf": {"optimizer": "adamw", "implementation": "foreach"},
    "adamw_apex_fused": {"optimizer": "adamw_apex"},
    "adamw_bnb_8bit": {"optimizer": "adamw_8bit"},
    "ademamix": {"optimizer": "ademamix_32bit"},
    "paged_adamw": {"optimizer": "paged_adamw_32bit"},
    "rmsprop_bnb": {"optimizer": "rmsprop_32bit"},
    "rmsprop_bnb_8bit": {"optimizer": "rmsprop_8bit"},
    "rmsprop_bnb_32bit": {"optimizer": "rmsprop_32bit"},
    "adamw_torch_4bit": {"optimizer": "torchao_adamw_4bit", **TORCHAO_BLOCK},
    "adamw_torch_8bit": {"optimizer": "torchao_adamw_8bit", **TORCHAO_BLOCK},
    "ao_adamw_4bit": {"optimizer": "torchao_adamw_4bit"},
    "ao_adamw_8bit": {"optimizer": "torchao_adamw_8bit"},
    "ao_adamw_fp8": {"optimizer": "torchao_adamw_fp8"},
    "sgd": {"optimizer": "sgd", "implementation": "foreach"},
    "galore_adamw": {"optimizer": "galore"},
    "galore_adamw_layerwise": {"optimizer": "galore", **IN_BACKWARD},
    "galore_adamw_8bit_layerwise": {"optimizer": "galore_adamw_8bit", **IN_BACKWARD},
    "galore_adafactor_layerwise": {"optimizer": "galore_adafactor", **IN_BACKWARD},
    "apollo_adamw": {"optimizer": "apollo"},
    "apollo_adamw_layerwise": {"optimizer": "apollo", **IN_BACKWARD},
}
"""`optim`, and our words for it; what is not here has the same name."""
STEPPED_EARLY = ("lomo", "adalomo")
"""Those, and the layerwise ones, leave no gradients to clip."""

DEFAULT_OPTIM = "adamw_torch_fused"
"""Of transformers 5, and of transformers 4 since PyTorch 2.8."""

HARMLESS_ARGUMENTS = """
    update_proj_gap scale dampening nesterov weight_decay lr_decay eps alpha beta1 beta2 beta3 t_alpha t_beta3
    bf16_stochastic_round weight_lr_power r max_lr decouple_lr alpha_init lamb gamma grokking_signal_decay_rate
    gradient_clipping compensation_buffer_dtype scale_type
""".split()
USUAL_ARGUMENTS = """
    proj_type=std proj=random use_kahan_summation=False centered=False momentum_dtype=float32 variance_dtype=float32
    kahan_sum=True
""".split()
"""`optim_args` that move no byte, and those that are what is modelled."""

HARMLESS = """
    output_dir overwrite_output_dir do_train do_predict num_train_epochs max_steps learning_rate lr_*
    lr_scheduler* warmup_* adam_* adam_beta* logging_* log_level* report_to run_name project trackio* save_*
    load_best_model_at_end metric_for_best_model greater_is_better seed data_seed dataloader_*
    remove_unused_columns label_names disable_tqdm push_to_hub* hub_* ddp_timeout resume_from_checkpoint
    ignore_data_skip full_determinism include_* length_column_name group_by_length average_tokens_across_devices
    restore_callback_states_from_checkpoint skip_memory_metrics log_on_each_node nan_inf_filter
    logging_nan_inf_filter tf32 bf16_full_eval fp16_full_eval use_cpu no_cuda local_rank ddp_backend report_to
    train_sampling_strategy label_smoothing_factor overwrite_cache preprocessing_num_workers dataset_*
    max_grad_value save_safetensors hub_model_id
"""
"""Arguments that move no byte of a training step on the device. (`tf32` changes products, not tensors.)"""

REFUSED = (
    *(
        "torch_compile_mode",
        "auto_find_batch_size",
        "neftune_noise_alpha",
        "liger_kernel_config",
        "torch_empty_cache_steps",
    ),
    *("activation_offloading", "galore_rank", "parallelism_config", "use_cce"),
)
"""Arguments that change what is allocated, and are not modelled."""

FULL = (
    "every sequence is full",
    "a file names the longest that a sequence may become, not how long the data is",
    "shorter sequences take less; packed ones are as long as this",
)
EVALUATION = (
    "an evaluation keeps its losses alone",
    "the file asks for it, and does not say whether the program computes metrics of predictions",
    "--eval-keeps logits with --eval-batches weighs predictions that are gathered",
)
DATA_PARALLEL = "what several devices keep to reduce gradients"


def training_arguments(book: Book, batch: tuple[str, ...] = ("per_device_train_batch_size",)) -> None:
    """The words of a file's `TrainingArguments`."""
    book.copy("batch", *batch, default=8 if batch == ("per_device_train_batch_size",) else None)
    book.copy("accumulation", "gradient_accumulation_steps", default=1)
    precision(book)
    optimizer(book)
    clip, norm = book.number("max_grad_norm")
    if norm is None:
        book.default("clip", True)
    elif "clip" not in book.words:
        book.say("clip", norm > 0, clip)
    book.copy("weight_decay", "weight_decay", default=0.0)
    evaluation(book)
    deepspeed_and_fsdp(book)
    liger(book, "use_liger_kernel", "enable_liger_kernel")
    key, compiled = book.found("torch_compile")
    if flag(compiled):
        book.say("compile", True, key)
        mode = book.take("torch_compile_mode")
        if mode not in (None, "default"):
            book.refusal("torch_compile_mode", mode)
    book.refuse(*REFUSED)


def evaluation(book: Book) -> None:
    """Batches of an evaluation, and when what they gave goes to the host."""
    strategy = book.take("eval_strategy", "evaluation_strategy", "do_eval")
    if strategy is not None and str(strategy).lower() not in ("no", "false"):
        book.assume(*EVALUATION)
    for word, key in (("eval_batch", "per_device_eval_batch_size"), ("eval_accumulation", "eval_accumulation_steps")):
        number = book.whole(key)
        if number is not None:
            book.say(word, number, key)
    book.take("eval_steps", "eval_on_start", "eval_delay")


def precision(book: Book) -> None:
    """`bf16` and `fp16` are autocast."""
    for key in ("bf16", "fp16"):
        if flag(book.take(key)):
            book.say("autocast", key, key)
    if "autocast" not in book.words:
        book.default("autocast", "none")
    key, dtype = book.found("dtype", "torch_dtype")
    if dtype is not None and dtype != "auto":
        book.say("dtype", str(dtype).removeprefix("torch."), key)


def optimizer(book: Book, *keys: str) -> None:
    """`optim` in our words, with its arguments."""
    key, name = book.found(*(keys or ("optim",)))
    words = OPTIMIZERS.get(str(name or DEFAULT_OPTIM), {"optimizer": str(name)})
    targets_key, targets = book.found("optim_target_modules")
    arguments_key, arguments = book.found("optim_args")
    if name is None and "optimizer" in book.words:
        return
    for word, value in words.items():
        if name is None:
            book.default(word, value)
        else:
            book.say(word, value, key)
    if str(name).endswith("_layerwise") or name in STEPPED_EARLY:
        book.say("clip", False, key)
    if targets is not None:
        book.say("projection_targets", targets_of(targets), targets_key)
    _optimizer_arguments(book, arguments_key, str(arguments or ""))


def _optimizer_arguments(book: Book, key: str, text: str) -> None:
    """`optim_args`: "rank=64, update_proj_gap=100"."""
    for argument in filter(None, text.replace(" ", "").split(",")):
        name, _, value = argument.partition("=")
        if name in ("rank", "block_size") and value.isdecimal():
            book.say({"rank": "projection_rank", "block_size": "optimizer_block"}[name], int(value), key)
        elif name == "momentum":
            book.say("momentum", float(value), key)
        elif name == "scale_type" and value == "tensor":
            book.say("optimizer", "apollo_mini", key)
        elif name not in HARMLESS_ARGUMENTS and argument not in USUAL_ARGUMENTS:
            book.refusal(key, argument)


def checkpointing(book: Book, default: bool, reentrant: bool, *keys: str) -> None:
    """Activation checkpointing, and in which form."""
    key, wanted = book.found(*(keys or ("gradient_checkpointing",)))
    form_key, form = book.found("gradient_checkpointing_kwargs.use_reentrant", "use_reentrant_gc")
    book.table("gradient_checkpointing_kwargs")
    if isinstance(wanted, str) and wanted.lower() not in ("true", "false"):
        book.refusal(key, wanted)
    elif flag(default if wanted is None else wanted):
        mode = "reentrant" if flag(reentrant if form is None else form) else "full"
        if wanted is None:
            book.default("checkpointing", mode)
        else:
            book.say("checkpointing", mode, key if form is None else form_key)
    elif wanted is not None:
        book.say("checkpointing", "none", key)


def attention(book: Book, *keys: str) -> None:
    """The implementation of attention."""
    key, name = book.found(*(keys or ("attn_implementation",)))
    if name is not None:
        book.say("attention", name, key)


def lora(book: Book, targets_key: str, default_rank: int, *ranks: str) -> None:
    """Adapters, as peft places them."""
    rank = book.whole(*(ranks or ("lora_r",)), default=default_rank)
    dropout = book.take("lora_dropout")
    targets = book.take(targets_key)
    book.take("lora_alpha", "use_rslora", "lora_bias")
    saved = book.take("lora_modules_to_save", "additional_target")
    dora = flag(book.take("use_dora", "peft_use_dora"))
    book.take("peft_init_lora_weights")
    book.refuse("relora", "lora_on_cpu")
    parameters = targets_of(book.take("lora_target_parameters"))
    layers, ranks = book.take("peft_layers_to_transform"), book.take("lora_rank_pattern")
    words: dict[str, Any] = {"rank": rank, "targets": targets_of(targets), "dropout": float(dropout or 0)}
    words |= {"dora": dora or None, "modules_to_save": targets_of(saved), "parameters": parameters}
    words |= {"layers": [layers] if isinstance(layers, int) else layers, "rank_pattern": ranks}
    book.say("lora", {name: value for name, value in words.items() if value is not None}, targets_key)


def quantized(book: Book, nested: bool, upcast: str, four_bits: str = "nf4") -> None:
    """Frozen weights of four or eight bits, as bitsandbytes stores them, and what is made fp32 beside them."""
    for key, kind in (("load_in_4bit", four_bits), ("load_in_8bit", "int8")):
        if flag(book.take(key)):
            book.say("quantization", kind, key)
            book.say("upcast", upcast, key)
            if kind == four_bits:
                book.say("double_quantization", nested, key)


def liger(book: Book, *keys: str) -> None:
    """Liger's kernels: norms, rotations, gated MLPs and the loss with the output layer."""
    key, wanted = book.found(*keys)
    if flag(wanted):
        book.say("fused_kernels", "liger", key)
        book.say("loss", "liger_fused_linear", key)


def targets_of(value: Any) -> list[str] | None:
    """The layers that adapters go to; None is peft's choice for the family."""
    if value is None:
        return None
    names = value.replace(",", " ").split() if isinstance(value, str) else list(value)
    return ["all-linear"] if names in (["all"], ["all-linear"]) else names


def deepspeed_and_fsdp(book: Book) -> None:
    """A DeepSpeed file that is named, and the Trainer's own `fsdp` settings."""
    key, wanted = book.found("fsdp")
    options = wanted.replace(",", " ").split() if isinstance(wanted, str) else wanted
    options = ["full_shard"] if options is True else [str(o) for o in options or ()]
    settings = book.table("fsdp_config")
    if any(o not in ("full_shard", "auto_wrap") for o in options):
        book.refusal(key, wanted)
    elif options or settings:
        fsdp(book, settings, "fsdp_config", flag(settings.get("use_orig_params", True)))


HYBRID = ("HYBRID_SHARD", "4", "HYBRID_SHARD_ZERO2", "_HYBRID_SHARD_ZERO2", "5")
"""Strategies that shard inside of a machine; the first two of them drop parameters after the forward pass."""
PREFETCH = {"BACKWARD_PRE": "pre", "BACKWARD_POST": "post", "NO_PREFETCH": "none"}
FSDP_HARMLESS = (
    *("state_dict_type", "cpu_ram_efficient_loading", "sync_module_states", "transformer_layer_cls_to_wrap"),
    *("transformer_cls_names_to_wrap", "backward_prefetch", "limit_all_gathers", "version", "xla", "use_orig_params"),
    "cpu_offload_pin_memory",
    *("sharding_strategy", "reshard_after_forward", "activation_checkpointing", "min_num_params"),
)
"""Settings of FSDP that are read here, or that move nothing: its prefetch in the backward pass is always on."""


def fsdp(book: Book, found: dict[str, Any], where: str, use_orig_params: bool) -> None:
    """Sharding as accelerate sets it up. `found` are its settings, with or without the prefix `fsdp_`."""
    settings = {name.removeprefix("fsdp_"): value for name, value in found.items()}
    version = int(settings.get("version") or 1)
    book.say("shard", f"fsdp{version}", f"{where}.fsdp_version")
    _strategy(book, settings, where, version)
    if version == 1:
        book.say("use_orig_params", use_orig_params, f"{where}.fsdp_use_orig_params")
    if flag(settings.get("activation_checkpointing")):
        book.say("checkpointing", "full", f"{where}.fsdp_activation_checkpointing")
    saved = str(settings.get("state_dict_type") or "").partition("_")[0].lower()
    if saved in ("full", "sharded"):
        book.say("state_dict", saved, f"{where}.fsdp_state_dict_type")
    elif saved:
        book.refusal(f"{where}.fsdp_state_dict_type", settings["state_dict_type"])
    wrap = str(settings.get("auto_wrap_policy") or "TRANSFORMER_BASED_WRAP").upper()
    if flag(settings.pop("offload_params", False)):
        book.say("offload_parameters", True, f"{where}.fsdp_offload_params")
    if version == 1:
        _prefetching(book, settings, where)
    elif flag(settings.pop("forward_prefetch", False)):
        book.refusal(f"{where}.fsdp_forward_prefetch", True)
    if wrap != "TRANSFORMER_BASED_WRAP":
        book.refusal(f"{where}.fsdp_auto_wrap_policy", wrap)
    unknown = [name for name in settings if name not in (*FSDP_HARMLESS, "auto_wrap_policy")]
    if unknown:
        raise InputError(f"knows no {', '.join(unknown)}", where=f"{book.document.where}: {where}")


def _strategy(book: Book, settings: dict[str, Any], where: str, version: int) -> None:
    """What is dropped after the forward pass, and whether machines are replicas."""
    key = f"{where}.fsdp_sharding_strategy"
    strategy = str(settings.get("sharding_strategy") or "FULL_SHARD").upper()
    reshard = settings.get("reshard_after_forward")
    if version == 2 and reshard is not None:
        book.say("reshard_after_forward", flag(reshard), f"{where}.fsdp_reshard_after_forward")
    elif strategy in ("SHARD_GRAD_OP", "2") or str(reshard).upper() == "SHARD_GRAD_OP":
        book.say("reshard_after_forward", False, key)
    elif strategy in HYBRID:
        book.say("replicas", book.words.get("nodes", 1), key)
        book.say("reshard_after_forward", strategy in HYBRID[:2], key)
    elif strategy not in ("FULL_SHARD", "1"):
        book.refusal(key, strategy)


def _prefetching(book: Book, settings: dict[str, Any], where: str) -> None:
    """What FSDP1 gathers ahead, and how far."""
    if flag(settings.pop("forward_prefetch", False)):
        book.say("forward_prefetch", True, f"{where}.fsdp_forward_prefetch")
    if not flag(settings.get("limit_all_gathers", True)):
        book.say("limit_all_gathers", False, f"{where}.fsdp_limit_all_gathers")
    wanted = settings.get("backward_prefetch")
    if wanted is not None:
        name = str(wanted).upper()
        book.say("backward_prefetch", PREFETCH.get(name, name.lower()), f"{where}.fsdp_backward_prefetch")
