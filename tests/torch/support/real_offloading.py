"""Activations that wait on the host, on a Llama of four layers: functions for `weigh trace`.

`python -m support.real_offloading` records each on fake CUDA tensors and prints a row of `tests/data/offloading.jsonl`;
it needs unsloth_zoo beside transformers. Copies to the host are counted too, by their births.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from weigh.measure.job import Job, words
from weigh.measure.process import Process
from weigh.recipes.settings import make
from weigh.recipes.training import Training
from weigh.trace.file import load
from weigh.trace.peak import phase_peaks

CONFIG = {
    "model_type": "llama",
    "vocab_size": 131,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 172,
}
BATCH, SEQUENCE = 2, 48
CASES: dict[str, dict[str, Any]] = {
    "save_on_cpu": {"offload_activations": True},
    "save_on_cpu_bf16": {"offload_activations": True, "dtype": "bf16"},
    "save_on_cpu_checkpoints": {"offload_activations": True, "checkpointing": "full", "dtype": "bf16"},
    "save_on_cpu_reentrant": {"offload_activations": True, "checkpointing": "reentrant", "dtype": "bf16"},
    "unsloth": {"checkpointing": "offloaded", "dtype": "bf16"},
    "unsloth_autocast": {"checkpointing": "offloaded", "autocast": "bf16"},
}


def unsloths() -> Any:
    """The class, out of its file alone: the package looks for a GPU as it is imported."""
    found = importlib.util.find_spec("unsloth_zoo")
    assert found is not None
    assert found.origin is not None
    path = Path(found.origin).parent / "gradient_checkpointing.py"
    text = path.read_text(encoding="utf-8")
    start = text.index("class Unsloth_Offloaded_Gradient_Checkpointer")
    stop = text.index("class Unsloth_Gradient_Checkpointer")
    helper = text.index("def _detach_checkpoint_args")
    source = text[helper : text.index("\ndef ", helper + 5)] + "\n\n" + text[start:stop]
    module = ModuleType("unsloths")
    module.__dict__.update(
        torch=torch,
        torch_amp_custom_fwd=torch.amp.custom_fwd(device_type="cuda"),
        torch_amp_custom_bwd=torch.amp.custom_bwd(device_type="cuda"),
        _gradient_checkpoint_recompute_marker=__import__("contextlib").nullcontext,
    )
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module.Unsloth_Offloaded_Gradient_Checkpointer  # type: ignore[attr-defined]


def built(case: str) -> Any:
    """(model, batch, loss) of a case."""
    wanted = CASES[case]
    torch.set_default_dtype(torch.bfloat16 if wanted.get("dtype") == "bf16" else torch.float32)
    config = LlamaConfig(**{k: v for k, v in CONFIG.items() if k != "model_type"}, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()
    torch.set_default_dtype(torch.float32)
    checkpointing = wanted.get("checkpointing")
    if checkpointing is not None:
        reentrant = {"use_reentrant": checkpointing == "reentrant"}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=reentrant)
    if checkpointing == "offloaded":
        kind = unsloths()
        for layer in model.model.layers:
            layer._gradient_checkpointing_func = kind.apply
    ids = torch.randint(0, 131, (BATCH, SEQUENCE), device="cuda")
    batch = {"input_ids": ids, "labels": ids, "use_cache": False}

    def loss(model: Any, batch: Any) -> Any:
        if not wanted.get("offload_activations"):
            return model(**batch).loss
        with torch.autograd.graph.save_on_cpu():
            return model(**batch).loss

    return model, batch, loss


for _case in CASES:  # `weigh trace` takes functions without arguments
    globals()[f"make_{_case}"] = partial(built, _case)


def main() -> None:
    for case, wanted in CASES.items():
        if sys.argv[1:] and case not in sys.argv[1:]:
            continue
        settings = {"batch": BATCH, "sequence": SEQUENCE, "optimizer": "sgd", "implementation": "foreach"}
        recipe = make(Training, {**settings, "autocast": wanted.get("autocast")})
        with tempfile.TemporaryDirectory() as folder, Process(timeout=300) as process:
            output = str(Path(folder) / "step.trace")
            process.ask(Job("train", words(recipe), function=f"support.real_offloading:make_{case}", output=output))
            found = [[p.mark.phase, p.before, p.peak] for p in phase_peaks(load(output)[0])]
        print(json.dumps({"case": case, "config": CONFIG, "settings": {**settings, **wanted}, "peaks": found}))


if __name__ == "__main__":
    main()
