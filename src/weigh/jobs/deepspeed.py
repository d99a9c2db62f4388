"""DeepSpeed's JSON. Names and defaults: https://www.deepspeed.ai/docs/config-json, `runtime/zero/config.py` (0.18).

"auto" is filled in by transformers from its own arguments: another file or the command line says it.
"""

from __future__ import annotations

from typing import Any

from weigh.jobs.documents import Document
from weigh.jobs.job import Book, Job, flag

HARMLESS = """
    train_batch_size zero_allow_untested_optimizer steps_per_print wall_clock_breakdown scheduler* comms_logger
    comms_config monitor_config tensorboard wandb csv_monitor flops_profiler prescale_gradients sparse_gradients
    fp16.loss_scale* fp16.initial_scale_power fp16.hysteresis fp16.min_loss_scale fp16.consecutive_hysteresis
    fp16.auto_cast zero_optimization.allgather_partitions zero_optimization.contiguous_gradients
    zero_optimization.reduce_scatter zero_optimization.round_robin_gradients optimizer.params.* checkpoint
    zero_optimization.ignore_unused_parameters _comment
    zero_optimization.cpu_offload zero_force_ds_cpu_optimizer aio dump_state elasticity autotuning
    gradient_predivide_factor disable_allgather dataloader_*
"""
BUFFERS = (
    *("reduce_bucket_size", "allgather_bucket_size", "overlap_comm", "sub_group_size", "stage3_max_live_parameters"),
    *(
        "stage3_max_reuse_distance",
        "zero_hpz_partition_size",
        "stage3_prefetch_bucket_size",
        "stage3_param_persistence_threshold",
    ),
)
"""Sizes of buffers, which a reader of settings has no words for unless the runtime does."""
GATHERED = (
    *("stage3_gather_16bit_weights_on_model_save", "gather_16bit_weights_on_model_save"),
    "stage3_gather_fp16_weights_on_model_save",
)
"""A setting and its other names: whether stage 3 saves whole weights."""
REFUSED = (
    *(
        "zero_optimization.zero_quantized_weights",
        "pipeline",
        "amp.enabled",
    ),
    *(
        "zero_optimization.zero_quantized_gradients",
        "compression_training",
    ),
    *(
        "sequence_parallel_size",
        "moe",
        "data_types.grad_accum_dtype",
        "bf16.immediate_grad_update",
        "torch_autocast.enabled",
    ),
    *("compile", "sparse_attention"),
)
CHECKPOINTS = (
    "DeepSpeed's activation_checkpointing changes nothing",
    "models of transformers call PyTorch's checkpoints, and only calls of deepspeed.checkpointing are configured by it",
    "a model that calls those keeps less on the device, and more on the host with cpu_checkpointing",
)
OPTIMIZERS = {"adamw": "adamw", "adam": "adamw", "lion": "lion", "lamb": "lamb", "muon": "muon", "adagrad": "adagrad"}
"""`Adam` is AdamW unless `adam_w_mode` says otherwise (`runtime/config.py`)."""


def recognises(document: Document) -> bool:
    """Whether it has ZeRO's settings, or a micro-batch in DeepSpeed's words."""
    return document.has("zero_optimization") or document.has("train_micro_batch_size_per_gpu")


def read(document: Document, ignored: frozenset[str]) -> Job:
    """What the file says about sharing, precision and the optimizer."""
    book = Book(document, "deepspeed", ignored, HARMLESS)
    unsaid = [key for key, value in book.left.items() if value == "auto"]
    for key in unsaid:
        del book.left[key]
        book.used.append(key)
    book.copy("batch", "train_micro_batch_size_per_gpu")
    book.copy("accumulation", "gradient_accumulation_steps")
    key, norm = book.number("gradient_clipping")
    if norm is not None:
        book.say("clip", norm > 0, key)
    for precision in ("bf16", "fp16"):
        if flag(book.take(f"{precision}.enabled")):
            book.say("dtype", precision, f"{precision}.enabled")
    stage: Any
    key, stage = book.found("zero_optimization.stage")
    if stage:
        book.say("shard", f"zero{stage}", key)
    for name in BUFFERS:
        key, value = book.found(f"zero_optimization.{name}", f"zero_optimization.{name.removeprefix('stage3_')}")
        if value is not None:
            book.say(f"zero_{name.removeprefix('stage3_').removeprefix('zero_')}", _size(value), key)
    key, whole = book.found(*(f"zero_optimization.{name}" for name in GATHERED))
    if stage == 3:
        book.say("state_dict", "full" if flag(whole) else "sharded", key)
    key, name = book.found("optimizer.type")
    if name is not None:
        book.say("optimizer", OPTIMIZERS.get(str(name).lower(), str(name)), key)
    _offloading(book)
    if any(flag(value) for value in book.table("activation_checkpointing").values()):
        book.assume(*CHECKPOINTS)
    key, sent = book.found("communication_data_type")
    if sent is not None and sent != book.words.get("dtype"):
        book.refusal(key, sent)  # gradients are cast to it to be reduced
    book.copy("tensor", "tensor_parallel.autotp_size")
    book.refuse(*REFUSED)
    return book.job(runtime="deepspeed", own_loop=True)


def _offloading(book: Book) -> None:
    """What is on the host; NVMe is refused."""
    for place, word in (("offload_optimizer", "offload_optimizer"), ("offload_param", "offload_parameters")):
        key, device = book.found(f"zero_optimization.{place}.device")
        book.take(f"zero_optimization.{place}.pin_memory")
        if device == "cpu":
            book.say(word, True, key)
        elif device not in (None, "none"):
            book.refusal(key, device)


def _size(value: Any) -> Any:
    """A number of elements, also as 5e8; none (0) is one: a group ends with the parameter that fills it."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return max(value, 1) if type(value) is int else value
