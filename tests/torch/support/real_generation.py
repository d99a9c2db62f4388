"""`model.generate` for real on the CPU, every storage counted: answers every job, a line, with its peak.

Each job is a JSON object with config, batch, prompt, new_tokens and dtype.
"""

from __future__ import annotations

import json
import sys
import weakref
from typing import Any

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Counter(TorchDispatchMode):
    """Live bytes of every storage that an op makes, and their highest sum."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.live = self.peak = 0
        for tensor in known:
            self.count(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.count(leaf)
        return out

    def count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.sizes or not size:
            return
        self.sizes[key] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.forget, key)

    def forget(self, key: int) -> None:
        self.live -= self.sizes.pop(key, 0)


def build(config: dict[str, Any], dtype: str, attention: str) -> torch.nn.Module:
    kind = transformers.AutoModelForImageTextToText if "text_config" in config else transformers.AutoModelForCausalLM
    tokens = {} if "text_config" in config else {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    made = transformers.CONFIG_MAPPING[config["model_type"]](**config | tokens)
    torch.set_default_dtype(DTYPES[dtype])
    try:
        if made.is_encoder_decoder:
            hears = config["model_type"] == "whisper"
            kind = transformers.AutoModelForSpeechSeq2Seq if hears else transformers.AutoModelForSeq2SeqLM
        return kind.from_config(made, attn_implementation=attention).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def peak(job: dict[str, Any]) -> int:
    """The highest sum of live bytes while generating, weights and prompt included."""
    transformers.logging.set_verbosity_error()
    attention = job.get("attention", "sdpa")
    model = build(job["config"], job["dtype"], attention)
    options = dict(job.get("options", {}))
    models = [model]
    if "assistant" in job:
        draft = build(job["assistant"], job["dtype"], attention)
        draft.generation_config.assistant_confidence_threshold = 0.0
        draft.generation_config.num_assistant_tokens = job["draft_tokens"]
        draft.generation_config.num_assistant_tokens_schedule = "constant"
        options["assistant_model"] = draft
        models.append(draft)
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(3, vocabulary - 3, (job["batch"], job["prompt"]))
    hears = model.main_input_name == "input_features"
    if hears:
        config = model.config
        ids = torch.randn(job["batch"], config.num_mel_bins, 2 * config.max_source_positions, dtype=model.dtype)
    known = [ids, *(t for m in models for t in (*m.parameters(), *m.buffers()))]
    with torch.no_grad(), Counter(known) as counter:
        given = {} if hears else {"attention_mask": torch.ones_like(ids)}
        model.generate(ids, **given, max_new_tokens=job["new_tokens"], do_sample=False, **options)
    return counter.peak


if __name__ == "__main__":
    torch.set_num_threads(1)  # matrices this small only wait for a second one
    for line in sys.stdin:
        print(json.dumps(peak(json.loads(line))), flush=True)
