"""torchtitan's TOML. Read: torchtitan 0.2 (`config/job_config.py`, `models/*/__init__.py`, `distributed/`).

Parameters are in fp32 and gathered in `mixed_precision_param`; everything that shares data is sharded with FSDP2.
"""

from __future__ import annotations

from weigh.jobs.documents import Document
from weigh.jobs.job import Book, Job, flag

HARMLESS = """
    job.* profiling.* metrics.* checkpoint.* lr_scheduler.* validation.* comm.* experimental.* fault_tolerance.*
    debug.* model.tokenizer_path model.hf_assets_path model.print_after_conversion optimizer.lr optimizer.eps
    optimizer.beta* optimizer.weight_decay training.steps training.dataset* training.warmup_steps training.gc_*
    training.seed training.deterministic training.global_batch_size training.debug_moe* float8.filter_fqns
    quantize.* float8.enable_fsdp_float8_all_gather float8.precompute_float8_dynamic_scale_for_fsdp
    float8.recipe_name parallelism.enable_async_tensor_parallel
    compile.components compile.backend
    activation_checkpoint.per_op_sac_force_recompute_mm_shapes_by_fqns activation_checkpoint.early_stop
    memory_estimation.* mx.* model.norm_type parallelism.pipeline_parallel_schedule
    parallelism.disable_loss_parallel
"""
MODELS = {
    ("llama3", "8B"): "llama-3.1-8b",
    ("llama3", "70B"): "llama-3.1-70b",
    ("llama3", "405B"): "llama-3.1-405b",
    ("llama2", "7B"): "llama-2-7b",
    ("llama2", "13B"): "llama-2-13b",
    ("llama2", "70B"): "llama-2-70b",
    ("qwen3", "0.6B"): "qwen3-0.6b",
    ("qwen3", "1.7B"): "qwen3-1.7b",
    ("qwen3", "4B"): "qwen3-4b",
    ("qwen3", "8B"): "qwen3-8b",
    ("qwen3", "14B"): "qwen3-14b",
    ("qwen3", "32B"): "qwen3-32b",
}
AXES = {"tensor": "tensor_parallel_degree", "pipeline": "pipeline_parallel_degree"} | {
    "context": "context_parallel_degree",
    "expert": "expert_parallel_degree",
}
DTYPES = {"bfloat16": "bf16", "float32": "fp32", "float16": "fp16"}


def recognises(document: Document) -> bool:
    """Whether it has the tables of a torchtitan job."""
    return (
        document.has("model.flavor") or document.has("training.local_batch_size") or document.has("job", "parallelism")
    )


def read(document: Document, ignored: frozenset[str]) -> Job:
    """The training that the file asks for."""
    book = Book(document, "torchtitan", ignored, HARMLESS)
    model = MODELS.get((str(book.take("model.name")), str(book.take("model.flavor"))))
    book.copy("batch", "training.local_batch_size", "training.batch_size", default=8)
    book.copy("sequence", "training.seq_len", default=2048)
    book.default("dtype", "fp32")
    for word, name, default in (("param_dtype", "param", "bfloat16"), ("reduce_dtype", "reduce", "float32")):
        key, value = book.found(f"training.mixed_precision_{name}")
        if value is None:
            book.default(word, DTYPES[default])
        else:
            book.say(word, DTYPES.get(str(value), str(value)), key)
    key, norm = book.number("training.max_norm")
    book.say("clip", norm > 0, key) if norm is not None else book.default("clip", True)
    _optimizer(book)
    key, mode = book.found("activation_checkpoint.mode")
    book.say("checkpointing", mode, key) if mode is not None else book.default("checkpointing", "selective")
    key, option = book.found("activation_checkpoint.selective_ac_option")
    if str(option).isdecimal() and book.words["checkpointing"] == "selective":
        book.say("checkpointing", "full", key)
        book.say("checkpoint_every", int(option), key)
    _mesh(book)
    key, compiled = book.found("compile.enable", "training.compile")
    if flag(compiled):
        book.say("compile", True, key)
    key, offloaded = book.found("training.enable_cpu_offload")
    if flag(offloaded):
        book.say("offload_parameters", True, key)
    book.refuse("optimizer.early_step_in_backward")
    book.refuse_more_than_one("parallelism.expert_tensor_parallel_degree")
    book.refuse("model.converters", "parallelism.pipeline_parallel_layers_per_stage", "encoder", "inference")
    book.refuse("parallelism.pipeline_parallel_microbatch_size", "parallelism.enable_compiled_autograd")
    return book.job(model=model, runtime="torchtitan")


def _optimizer(book: Book) -> None:
    key, name = book.found("optimizer.name")
    book.say("optimizer", str(name).lower(), key) if name is not None else book.default("optimizer", "adamw")
    key, implementation = book.found("optimizer.implementation")
    if implementation is not None:
        book.say("implementation", implementation, key)
    elif flag(book.take("optimizer.fused")) or "adamw" in book.words["optimizer"]:
        book.default("implementation", "fused")


def _mesh(book: Book) -> None:
    """The axes; where the number of shards is left open (-1), so is the number of devices."""
    world = 1
    for word, name in AXES.items():
        number = book.whole(f"parallelism.{name}", default=1) or 1
        if number > 1:
            book.say(word, number, f"parallelism.{name}")
        world *= number if word != "expert" else 1
    replicas = book.whole("parallelism.data_parallel_replicate_degree", default=1) or 1
    if replicas > 1:
        book.say("replicas", replicas, "parallelism.data_parallel_replicate_degree")
    key, shards = book.found("parallelism.data_parallel_shard_degree")
    book.say("shard", "fsdp2", key)
    if isinstance(shards, int) and shards > 0:
        devices = world * replicas * shards
        nodes = devices // 8 if devices % 8 == 0 else 1
        book.say("gpus_per_node", devices // nodes, key)
        book.say("nodes", nodes, key)
    key, method = book.found("parallelism.context_parallel_rotate_method")
    if method is not None and "context" in book.words:
        book.say("context_method", method, key)
    key, reshard = book.found("parallelism.fsdp_reshard_after_forward")
    if reshard in ("always", "never"):
        book.say("reshard_after_forward", reshard == "always", key)
