"""Optimizers that step in the backward pass, on a Llama of four layers: functions for `weigh trace`.

`python -m support.real_in_backward` records each on fake CUDA tensors and prints a row of
`tests/data/in_backward.jsonl`; it needs galore_torch and lomo_optim beside transformers.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from weigh.measure.job import Job, words
from weigh.measure.process import Process
from weigh.measure.recorder import Recorder
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
GALORE = {"rank": 16, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}
CASES: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": "adamw", "optimizer_in_backward": True},
    "adamw_bf16": {"optimizer": "adamw", "optimizer_in_backward": True, "dtype": "bf16"},
    "adafactor_tied": {"optimizer": "adafactor", "optimizer_in_backward": True, "dtype": "bf16", "tied": True},
    "galore_layerwise": {"optimizer": "galore", "optimizer_in_backward": True, "dtype": "bf16", "projection_rank": 16},
    "torchao_cpu_offload_gradients": {"optimizer": "torchao_cpu_offload_gradients", "dtype": "bf16"},
    "lomo": {"optimizer": "lomo", "dtype": "bf16"},
    "lomo_fp32_tied": {"optimizer": "lomo", "tied": True},
    "adalomo": {"optimizer": "adalomo", "dtype": "bf16"},
    "adalomo_tied": {"optimizer": "adalomo", "dtype": "bf16", "tied": True},
}


class Nothing:
    """What is left of an optimizer that stepped already."""

    def step(self) -> None: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...

    state: dict[Any, Any] = {}  # noqa: RUF012
    param_groups: list[dict[str, Any]] = []  # noqa: RUF012


def singles(make_single: Callable[[str, Any], Any]) -> Callable[[Any], Any]:
    """An optimizer for each parameter, hooked in as PyTorch's tutorial and transformers do."""

    def attach(model: Any) -> Any:
        made = {p: make_single(n, p) for n, p in model.named_parameters()}

        def hook(parameter: Any) -> None:
            made[parameter].step()
            made[parameter].zero_grad()

        for parameter in made:
            parameter.register_post_accumulate_grad_hook(hook)
        return Nothing()

    return attach


def galore(name: str, parameter: Any) -> Any:
    """transformers' layerwise GaLore, of attention and MLP."""
    kind = importlib.import_module("galore_torch").GaLoreAdamW
    target = parameter.ndim == 2 and ("attn" in name or "mlp" in name)
    return kind([{"params": [parameter], **(GALORE if target else {})}], lr=1e-3)


def adafactor(_: str, parameter: Any) -> Any:
    """transformers' own."""
    return importlib.import_module("transformers").Adafactor([parameter])


def lomo(kind: str) -> Callable[[Any], Any]:
    """LOMO; the last update is made as soon as the backward pass is over, as `fused_backward` does."""

    def attach(model: Any) -> Any:
        made = getattr(importlib.import_module("lomo_optim"), kind)(model, lr=1e-3)
        made.step_num = 1
        queued = [False]

        def after() -> None:
            queued[0] = False
            made.grad_func(0)

        def first(gradient: Any) -> Any:
            if not queued[0]:
                queued[0] = True
                torch.autograd.Variable._execution_engine.queue_callback(after)
            return gradient

        model.lm_head.weight.register_hook(first)
        return Nothing()

    return attach


def offloaded(model: Any) -> Any:
    """torchao's optimizer on the host; a second stream, events and pinned memory move no byte of the device's."""
    module = importlib.import_module("torchao.optim.cpu_offload")
    module.get_available_devices = lambda: ["cuda"]
    stream = SimpleNamespace(
        synchronize=lambda: None,
        wait_stream=lambda _: None,
        record_event=lambda: SimpleNamespace(synchronize=lambda: None),
    )
    torch.cuda.Stream = lambda: stream
    torch.cuda.current_stream = torch.cuda.stream = lambda *_: nullcontext()
    torch.Tensor.record_stream = lambda *_: None
    real = torch.empty_like

    def unpinned(*args: Any, **settings: Any) -> Any:
        settings.pop("pin_memory", None)
        return real(*args, **settings)

    torch.empty_like = unpinned
    made = module.CPUOffloadOptimizer(model.parameters(), torch.optim.AdamW, offload_gradients=True)
    made.state = {}
    return made


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "torchao_cpu_offload_gradients": offloaded,
    "adamw": singles(lambda _, p: torch.optim.AdamW([p], foreach=True)),
    "adafactor": singles(adafactor),
    "galore": singles(galore),
    "lomo": lomo("Lomo"),
    "adalomo": lomo("AdaLomo"),
}


def built(case: str) -> Any:
    """(model, batch, loss, optimizer) of a case."""
    wanted = CASES[case]
    Recorder._value = lambda _, x: float(x.dtype is torch.bool)  # type: ignore[method-assign]  # weights are no zeros
    dtype = torch.bfloat16 if wanted.get("dtype") == "bf16" else torch.float32
    settings = {k: v for k, v in CONFIG.items() if k != "model_type"}
    config = LlamaConfig(**settings, tie_word_embeddings=wanted.get("tied", False))
    torch.set_default_dtype(dtype)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()
    torch.set_default_dtype(torch.float32)
    ids = torch.randint(0, 131, (BATCH, SEQUENCE), device="cuda")
    batch = {"input_ids": ids, "labels": ids, "use_cache": False}
    return model, batch, None, lambda _: OPTIMIZERS[wanted["optimizer"]](model)


for _case in CASES:  # `weigh trace` takes functions without arguments
    globals()[f"make_{_case}"] = lambda case=_case: built(case)


def main() -> None:
    recipe = make(Training, {"batch": BATCH, "sequence": SEQUENCE, "optimizer": "sgd"})
    for case, wanted in CASES.items():
        if sys.argv[1:] and case not in sys.argv[1:]:
            continue
        with tempfile.TemporaryDirectory() as folder, Process(timeout=300) as process:
            output = str(Path(folder) / "step.trace")
            process.ask(Job("train", words(recipe), function=f"support.real_in_backward:make_{case}", output=output))
            found = [[p.mark.phase, p.before, p.peak] for p in phase_peaks(load(output)[0])]
        settings = {k: v for k, v in wanted.items() if k != "tied"}
        config = CONFIG | {"tie_word_embeddings": wanted.get("tied", False)}
        print(json.dumps({"case": case, "config": config, "settings": settings, "peaks": found}))


if __name__ == "__main__":
    main()
