"""Arguments of transformers' Trainer and of TRL's: YAML, JSON, or a command line.

A plain Trainer trains as the config says; TRL's trainers (told by keys that only they have) checkpoint by default and
cut their sequences at 1024 tokens. Read: transformers 5.23, TRL 1.16 (`trainer/sft_config.py`,
`trainer/model_config.py`).
"""

from __future__ import annotations

from weigh.errors import NotModelledError
from weigh.jobs import hugging
from weigh.jobs.documents import Document
from weigh.jobs.job import Book, Job, flag

TRL = ("use_peft", "max_length", "max_seq_length", "dataset_text_field", "loss_type", "packing", "dataset_num_proc")

HARMLESS = f"""
    {hugging.HARMLESS} model_revision trust_remote_code chat_template* dataset_* dataset dataset_name datasets
    data_* config_name tokenizer_name use_fast eos_token pad_token gradient_checkpointing_kwargs trust_remote_code
    nproc_per_node nnodes node_rank master_* config_file num_processes packing_strategy padding_free
    assistant_only_loss completion_only_loss train_on_* system_prompt benchmarks callbacks wandb_* lora_task_type
    block_size_hint text_column validation_split_percentage train_file validation_file
"""
REFUSED = ("load_in_8bit", "load_in_4bit", "bnb_4bit_quant_type", "use_bnb_nested_quant")
PREFERENCES = (
    *("num_generations", "max_completion_length", "max_prompt_length", "ref_model", "reward_model_path", "beta"),
    "loss_type",
)
"""Keys of trainers that keep more models than one, or several answers to a question (DPO, ORPO, KTO, GRPO, PPO)."""


def recognises(document: Document) -> bool:
    """Whether these are `TrainingArguments`, perhaps with a model's."""
    return document.has("per_device_train_batch_size") or (
        document.has("model_name_or_path")
        and any(document.has(key) for key in ("output_dir", "dataset_name", "learning_rate"))
    )


def read(document: Document, ignored: frozenset[str]) -> Job:
    """The training that the arguments ask for."""
    book = Book(document, "trainer", ignored, HARMLESS)
    if document.arguments:
        _launcher(book)
    trl = document.has("use_peft") or any(document.has(key) for key in TRL)
    _refuse_preferences(book)
    hugging.training_arguments(book)
    hugging.checkpointing(book, trl, False)
    hugging.attention(book)
    key, length = book.found("max_length", "max_seq_length", "block_size")
    if length is not None:
        book.say("sequence", length, key)
    elif trl:
        book.default("sequence", 1024)
    book.assume(*hugging.FULL)
    if flag(book.take("use_peft")) or document.has("lora_r"):
        hugging.lora(book, "lora_target_modules", 16)
        nested = flag(book.take("use_bnb_nested_quant"))
        hugging.quantized(book, nested, "norms", book.take("bnb_4bit_quant_type") or "nf4")
    book.take("loss_type")
    book.refuse(*REFUSED)
    book.take("packing", "eval_packing")
    model = book.take("model_name_or_path", "model_name")
    deepspeed = book.take("deepspeed")
    return book.job(model=model, runtime="transformers", files=(deepspeed,) if isinstance(deepspeed, str) else ())


def _refuse_preferences(book: Book) -> None:
    """Raise `NotModelledError` where other things are trained on than the next token."""
    keys = [key for key in PREFERENCES if book.left.get(key) not in (None, "nll")]
    if keys:
        hint = "Pairs of answers, and often a second model, lie beside what is trained; plain fine-tuning on such "
        hint += f"sequences is weighed with --ignore {','.join(keys)}."
        where = book.document.where
        raise NotModelledError(f"training on preferences ({', '.join(keys)})", where=where, hint=hint)


def _launcher(book: Book) -> None:
    """What torchrun and accelerate are told."""
    for word, keys in (("nodes", ("nnodes", "num_machines")), ("gpus_per_node", ("nproc_per_node", "num_processes"))):
        key, number = book.found(*keys)
        if number is not None:
            book.say(word, number, key)
