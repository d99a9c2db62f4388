"""torchtune's YAML. Read: torchtune 0.6.1 (`recipes/`, `models/*/_model_builders.py`).

The model, its size and its adapters are in the name of a builder. Without `dtype: fp32` everything, the optimizer's
state among it, is in bf16; the distributed recipes shard with FSDP2.
"""

from __future__ import annotations

import re

from weigh.jobs.documents import Document
from weigh.jobs.job import Book, Job, flag

HARMLESS = """
    output_dir checkpointer tokenizer resume_from_checkpoint save_adapter_weights_only seed shuffle epochs
    max_steps_per_epoch lr_scheduler metric_logger log_* profiler device dataset.* dataset_val* optimizer.lr
    optimizer.betas optimizer.eps optimizer.momentum cudnn_deterministic_mode run_val_every_n_steps batch_size_val
    log_peak_memory_stats keep_last_n_checkpoints model.lora_alpha enable_async_checkpointing collate_fn packed
    save_every_n_* dataloader.* datasets name base_model_path epochs_to_save loss.ignore_index
    memory_* optimizer.weight_decay dataset model_cfg
"""
MODELS = {
    r"llama2_(7|13|70)b": r"llama-2-\1b",
    r"llama3_(8|70)b": r"llama-3-\1b",
    r"llama3_1_(8|70|405)b": r"llama-3.1-\1b",
    r"llama3_2_(1|3)b": r"llama-3.2-\1b",
    r"mistral_7b": r"mistral-7b-v0.1",
    r"gemma_(2|7)b": r"gemma-\1b",
    r"gemma2_(2|9|27)b": r"gemma-2-\1b",
    r"phi3_mini": r"phi-3-mini",
    r"qwen2_5_(\d+)b(?:_base|_instruct)?": r"qwen2.5-\1b",
    r"qwen2_5_(\d+)_(\d)b(?:_base|_instruct)?": r"qwen2.5-\1.\2b",
    r"qwen3_(\d+)b(?:_base|_instruct)?": r"qwen3-\1b",
    r"qwen3_(\d+)_(\d)b(?:_base|_instruct)?": r"qwen3-\1.\2b",
}
"""Builders, and our names for their models."""
OPTIMIZERS = {
    "torch.optim.AdamW": "adamw",
    "torch.optim.Adam": "adam",
    "torch.optim.SGD": "sgd",
    "bitsandbytes.optim.PagedAdamW8bit": "paged_adamw_8bit",
    "bitsandbytes.optim.PagedAdamW": "paged_adamw_32bit",
    "bitsandbytes.optim.AdamW8bit": "adamw_8bit",
}
LOSSES = {
    "CrossEntropyLoss": "upcast",
    "CEWithChunkedOutputLoss": "chunked",
    "LinearCrossEntropyLoss": "linear_chunked",
}
SWITCHES = {
    "compile": "compile",
    "optimizer_in_bwd": "optimizer_in_backward",
    "enable_activation_offloading": "offload_activations",
    "fsdp_cpu_offload": "offload_parameters",
}
"""Flags, and our settings for them."""
MLP = ("w1", "w2", "w3")
"""torchtune's names of the layers of a gated MLP, ..."""
OURS = {"output_proj": "o_proj", "w1": "gate_proj", "w2": "down_proj", "w3": "up_proj", "output": "lm_head"}
"""... and transformers' names of them."""


OTHER_JOBS = (
    *("quantizer", "tasks", "prompt", "max_new_tokens", "ref_checkpointer", "inference", "orchestration"),
    *("grpo_samples", "reward_functions", "ppo_epochs", "forward_batch_size", "model.image_size"),
)
"""Keys of recipes that quantize, test or generate, or that train otherwise than by next tokens of text."""


def recognises(document: Document) -> bool:
    """Whether the model is one of torchtune's builders."""
    return document.has("model._component_") and "torchtune." in str(document.keys["model"]["_component_"])


def read(document: Document, ignored: frozenset[str]) -> Job:
    """The training that the file asks for."""
    book = Book(document, "torchtune", ignored, HARMLESS)
    key, builder = book.found("model._component_")
    name = str(builder).rpartition(".")[2]
    if name.startswith("qlora_"):
        book.refusal(key, builder)
    plain = re.sub(r"^q?lora_", "", name)
    model = next(
        (re.sub(pattern, ours, plain) for pattern, ours in MODELS.items() if re.fullmatch(pattern, plain)), None
    )
    if name != plain:
        _adapters(book)
    book.copy("batch", "batch_size")
    book.copy("accumulation", "gradient_accumulation_steps", default=1)
    book.copy("sequence", "tokenizer.max_seq_len")
    dtype_key, dtype = book.found("dtype")
    book.say("dtype", dtype or "fp32", dtype_key)
    book.say("autocast", "none", dtype_key)
    key, optimizer = book.found("optimizer._component_", "optimizer.optimizer")
    book.say("optimizer", OPTIMIZERS.get(str(optimizer), str(optimizer)), key)
    key, fused = book.found("optimizer.fused")
    if flag(fused):
        book.say("implementation", "fused", key)
    key, clip = book.found("clip_grad_norm")
    if clip is not None:
        book.say("clip", True, key)
    key, wanted = book.found("enable_activation_checkpointing")
    book.say("checkpointing", "full" if flag(wanted) else "none", key)
    key, loss = book.found("loss._component_")
    if loss is not None:
        named = str(loss).rpartition(".")[2]
        book.say("loss", LOSSES.get(named, named), key)
    for name, ours in SWITCHES.items():
        key, wanted = book.found(name)
        if flag(wanted):
            book.say(ours, True, key)
    book.copy("tensor", "tensor_parallel_dim")
    book.refuse("custom_sharded_layers")
    book.refuse(*OTHER_JOBS)
    book.refuse("model.use_dora", "model.quantize_base", "ac_mode", "ac_option", "teacher_model", "enable_fp8_training")
    if "sequence" not in book.words:
        book.take("tokenizer.max_seq_len")
    return book.job(model=model, runtime="torchtune", among_many={"shard": "fsdp2"})


def _adapters(book: Book) -> None:
    targets = list(book.take("model.lora_attn_modules") or ())
    targets += MLP if flag(book.take("model.apply_lora_to_mlp")) else ()
    targets += ["output"] if flag(book.take("model.apply_lora_to_output")) else []
    words = {
        "rank": book.whole("model.lora_rank", default=8),
        "targets": [OURS.get(t, t) for t in targets],
        "dropout": float(book.take("model.lora_dropout") or 0),
        "autocast_adapter": False,  # adapters are made in the model's dtype
    }
    book.say("lora", words, "model.lora_attn_modules")
