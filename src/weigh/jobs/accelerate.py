"""accelerate's YAML (`accelerate config`). Read: accelerate 1.15 (`commands/config`, `utils/dataclasses.py`).

It says on how many devices and how they share; batch, length and model are the script's.
"""

from __future__ import annotations

from weigh.jobs import hugging
from weigh.jobs.documents import Document
from weigh.jobs.job import Book, Job, flag

HARMLESS = """
    compute_environment debug downcast_bf16 enable_cpu_affinity machine_rank main_training_function main_process_*
    rdzv_backend same_network tpu_* use_cpu gpu_ids dynamo_config.dynamo_backend
    deepspeed_config.deepspeed_multinode_launcher deepspeed_config.zero3_init_flag ipex_config commands
    command_file deepspeed_config.deepspeed_hostfile
    mpirun_config
"""
AXES = {"replicas": "dp_replicate_size", "tensor": "tp_size", "context": "cp_size"}
KINDS = ("NO", "MULTI_GPU", "FSDP", "DEEPSPEED")


def recognises(document: Document) -> bool:
    """Whether it says in what environment something is computed, and how it is distributed."""
    return document.has("distributed_type") and any(
        document.has(key) for key in ("compute_environment", "num_processes", "mixed_precision")
    )


def read(document: Document, ignored: frozenset[str]) -> Job:
    """What the file says about devices and precision."""
    book = Book(document, "accelerate", ignored, HARMLESS)
    machines = book.whole("num_machines", default=1) or 1
    processes = book.whole("num_processes", default=1) or 1
    book.say("nodes", machines, "num_machines")
    book.say("gpus_per_node", max(1, processes // machines), "num_processes")
    key, precision = book.found("mixed_precision")
    if precision == "fp8":
        book.refusal(key, precision)
    elif precision is not None:
        book.say("autocast", "none" if str(precision) in ("no", "False") else precision, key)
    key, kind = book.found("distributed_type")
    settings = book.table("fsdp_config")
    if str(kind) not in (*KINDS, "False"):
        book.refusal(key, kind)
    elif kind == "FSDP":
        hugging.fsdp(book, settings, "fsdp_config", flag(settings.get("fsdp_use_orig_params", True)))
    files = _deepspeed(book) if kind == "DEEPSPEED" else ()
    key, backend = book.found("dynamo_config.dynamo_backend")
    if str(backend or "NO").upper() == "INDUCTOR":
        book.say("compile", True, key)
    elif str(backend or "NO").upper() != "NO":
        book.refusal("dynamo_config.dynamo_backend", f"code compiled by {backend}")
    _axes(book)
    book.refuse("megatron_lm_config", "fp8_config")
    return book.job(runtime="transformers", files=files)


def _axes(book: Book) -> None:
    """`parallelism_config`: what shares what, where it is not only the data; all numbers are 1 unless they are said."""
    for word, name in AXES.items():
        number = book.whole(f"parallelism_config.parallelism_config_{name}") or 1
        if number > 1:
            book.say(word, number, f"parallelism_config.parallelism_config_{name}")
    book.take("parallelism_config.parallelism_config_dp_shard_size")  # what the other axes leave
    book.take("parallelism_config.parallelism_config_cp_comm_strategy")
    book.refuse_more_than_one("parallelism_config.parallelism_config_sp_size")
    for name in [name for name in book.left if name.startswith("parallelism_config.parallelism_config_sp_")]:
        book.take(name)  # how a sequence is shared, which it is not


def _deepspeed(book: Book) -> tuple[str, ...]:
    """The settings of DeepSpeed that accelerate repeats, or the file that has them."""
    file = book.take("deepspeed_config.deepspeed_config_file")
    key, stage = book.found("deepspeed_config.zero_stage")
    if stage:
        book.say("shard", f"zero{stage}", key)
    key, whole = book.found("deepspeed_config.zero3_save_16bit_model")
    if whole is not None and stage == 3:
        book.say("state_dict", "full" if flag(whole) else "sharded", key)
    book.copy("accumulation", "deepspeed_config.gradient_accumulation_steps")
    key, norm = book.number("deepspeed_config.gradient_clipping")
    if norm is not None:
        book.say("clip", norm > 0, key)
    for place, word in (("offload_optimizer", "offload_optimizer"), ("offload_param", "offload_parameters")):
        key, device = book.found(f"deepspeed_config.{place}_device")
        if device == "cpu":
            book.say(word, True, key)
        elif device not in (None, "none"):
            book.refusal(key, device)
    return (file,) if isinstance(file, str) else ()
