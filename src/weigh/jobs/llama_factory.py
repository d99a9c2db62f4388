"""LLaMA-Factory's YAML. Read: 0.9.5 (`hparams/*.py`, `model/adapter.py`, `model/model_utils/checkpointing.py`).

Checkpointing is on, and reentrant, unless it is switched off. Full fine-tuning upcasts what it trains to fp32, unless
`pure_bf16` is asked for.
"""

from __future__ import annotations

from weigh.jobs import hugging
from weigh.jobs.documents import Document
from weigh.jobs.job import Book, Job, flag

HARMLESS = f"""
    {hugging.HARMLESS} trust_remote_code stage template dataset dataset_dir eval_dataset max_samples val_size
    plot_loss overwrite_cache preprocessing_* dataloader_* cache_dir use_fast_tokenizer model_revision
    split_special_tokens lora_alpha loraplus_* use_rslora create_new_adapter mix_strategy interleave_probs
    tokenized_path streaming buffer_size mask_history train_on_prompt enable_thinking swanlab_* use_swanlab ray_*
    image_* video_* eval_steps export_* infer_backend infer_dtype media_dir tool_format default_system
    bias_activation_fusion apply_rope_fusion fp8_backend fp8_enable_fsdp_float8_all_gather num_expand
    name_module_trainable lr_scheduler_kwargs packing neat_packing compute_accuracy
"""
REFUSED = (
    *("use_unsloth", "shift_attn", "rope_scaling"),
    *(
        "upcast_layernorm",
        "upcast_lmhead_output",
        "mixture_of_depths",
        "use_galore",
        "use_badam",
    ),
    *("use_apollo", "use_muon", "use_adam_mini", "ref_model", "reward_model", "adapter_name_or_path", "use_kt"),
    *("tensor_model_parallel_size", "pipeline_model_parallel_size", "expert_model_parallel_size", "fp8", "use_mca"),
    *("use_dft_loss", "use_eaft_loss", "use_asft_loss", "use_v1_kernels", "context_parallel_size"),
    *("freeze_vision_tower", "resize_vocab", "use_llama_pro", "moe_aux_loss_coef", "pissa_init", "additional_target"),
)
ATTENTION = {"auto": "sdpa", "disabled": "eager", "sdpa": "sdpa", "fa2": "flash_attention_2"}


def recognises(document: Document) -> bool:
    """Whether it names a model and a stage, or the words that only this program has."""
    return document.has("model_name_or_path") and any(
        document.has(key) for key in ("stage", "finetuning_type", "cutoff_len")
    )


def read(document: Document, ignored: frozenset[str]) -> Job:
    """The training that the file asks for."""
    book = Book(document, "llama-factory", ignored, HARMLESS)
    key, stage = book.found("stage")
    if stage not in (None, "sft", "pt"):
        book.refusal(key, stage)
    book.copy("sequence", "cutoff_len", default=2048)
    pure = flag(book.take("pure_bf16"))
    hugging.training_arguments(book)
    lower = "bf16" if pure else book.words["autocast"]
    if pure:
        book.say("autocast", "none", "pure_bf16")
    key, method = book.found("finetuning_type")
    if method in (None, "lora"):
        hugging.lora(book, "lora_target", 8, "lora_rank")
        book.words["lora"].setdefault("targets", ["all-linear"])
    elif method != "full":
        book.refusal(key, method)
    _quantized(book)
    whole = method == "full" and not pure
    book.say("dtype", "fp32" if whole or lower == "none" else lower, key if method else "pure_bf16" if pure else "bf16")
    disabled = book.take("disable_gradient_checkpointing")
    book.left["gradient_checkpointing"] = not flag(disabled) if disabled is not None else None
    hugging.checkpointing(book, True, book.words.get("shard") != "fsdp2")
    if flag(book.take("use_unsloth_gc")):
        book.say("checkpointing", "offloaded", "use_unsloth_gc")
    key, attention = book.found("flash_attn")
    if attention is not None:
        book.say("attention", ATTENTION.get(str(attention), attention), key)
    book.refuse(*REFUSED)
    book.assume(*hugging.FULL)
    deepspeed = book.take("deepspeed")
    files = (deepspeed,) if isinstance(deepspeed, str) else ()
    return book.job(model=book.take("model_name_or_path"), runtime="transformers", files=files)


def _quantized(book: Book) -> None:
    """`quantization_bit`: bitsandbytes, unless another method is named; nothing beside it is made fp32.

    Adapters are in fp32, unless `pure_bf16` is asked for.
    """
    key, bits = book.found("quantization_bit")
    method_key, method = book.found("quantization_method")
    nested, kind = book.take("double_quantization"), book.take("quantization_type")
    if bits is None:
        return
    if method not in (None, "bnb", "bitsandbytes"):
        book.refusal(method_key, method)
    elif bits in (4, 8):
        book.say("quantization", str(kind or "nf4") if bits == 4 else "int8", key)
        if bits == 4:
            book.say("double_quantization", nested is None or flag(nested), key)
    else:
        book.refusal(key, bits)
