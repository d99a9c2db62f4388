"""Records tests/data/liger.jsonl: Python around kernels (Liger, cut-cross-entropy, AutoAWQ, HQQ) on fake CUDA tensors.

PYTHONPATH=FOLDER_OF_THEM python tools/record_liger.py

Needs `weigh[torch]`, termcolor and the sources of liger-kernel 0.8.5, cut-cross-entropy 25.1.1, AutoAWQ 0.2.9 and
hqq 0.2.8. Triton and CUDA are not needed: what kernels allocate is allocated by the Python around them, and the kernels
themselves are left out.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

ROWS = Path(__file__).parent.parent / "tests/data/liger.jsonl"
SIZES = {"vocab_size": 1300, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 80}  # fmt: skip
CASES: list[dict[str, Any]] = [
    {"config": {"model_type": "llama"}, "settings": {"batch": 2, "sequence": 64, "dtype": "bf16"}},
    {"config": {"model_type": "llama"}, "settings": {"batch": 3, "sequence": 100, "dtype": "bf16", "loss": "upcast"}},
    {"config": {"model_type": "mistral"}, "settings": {"batch": 2, "sequence": 64, "autocast": "bf16"}},
    {"config": {"model_type": "llama"}, "settings": {"batch": 2, "sequence": 64}},
    {"config": {"model_type": "qwen3", "head_dim": 16}, "settings": {"batch": 2, "sequence": 64, "dtype": "bf16"}},
    {"config": {"model_type": "qwen2"},
     "settings": {"batch": 2, "sequence": 96, "dtype": "bf16", "checkpointing": "full"}},
]  # fmt: skip
CUT: list[dict[str, Any]] = [
    {"cut": [2, 64, 48, 1300], "dtype": "bf16"},
    {"cut": [3, 50, 64, 700], "dtype": "bf16", "head": "fp32"},
]
"""Batch, length, width and vocabulary."""
AWQ: list[dict[str, Any]] = [
    {"awq": [3, 40, 256, 512], "dtype": "bf16"},
    {"awq": [4, 256, 256, 512], "dtype": "fp16", "bias": True},
]
"""Batch, length, inputs and outputs."""
HQQ: list[dict[str, Any]] = [{"hqq": [3, 40, 256, 512]}]


AUTOTUNE = "cut_cross_entropy.tl_autotune"


class Anything:
    """Triton, or a part of it: a decorator that gives nothing to run, a kernel that runs nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __call__(self, *args: Any, **_: Any) -> Any:
        return Anything()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()

    def __getitem__(self, _: Any) -> Any:
        return Anything()

    def __or__(self, _: Any) -> Any:
        return self

    __ror__ = __mul__ = __rmul__ = __or__


class Constexpr:
    """A number that kernels are compiled with."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Triton(types.ModuleType):
    """A module of it."""

    __path__ = ()
    constexpr = Constexpr
    __version__ = "3.0.0"
    cdiv = staticmethod(lambda a, b: -(-a // b))
    next_power_of_2 = staticmethod(lambda n: 1 << (n - 1).bit_length())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds Triton, whatever is asked of it."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.split(".")[0] != "triton" and name != AUTOTUNE:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> Any:
        return Triton(spec.name)

    def exec_module(self, module: Any) -> None: ...


def made() -> Any:
    """The model of the case at hand, with Liger's kernels, as `weigh.measure` runs functions."""
    sys.meta_path.insert(0, Finder())
    import torch

    torch.Tensor.item = lambda _: 1  # how many labels count
    torch.cuda.device = lambda *_: contextlib.nullcontext()
    torch.cuda.get_device_properties = lambda *_: types.SimpleNamespace(multi_processor_count=108)
    torch.cuda.get_device_capability = lambda *_: (8, 0)
    from liger_kernel.ops import fused_linear_cross_entropy
    from liger_kernel.transformers import monkey_patch

    # the loss's own gradient is one, and a number on the device finds that out
    fused_linear_cross_entropy.fused_linear_cross_entropy_backward = lambda _, *gradients: gradients

    from weigh.measure.training import apply_techniques
    from weigh.measure.workload import build
    from weigh.recipes.settings import make
    from weigh.recipes.training import Training

    case = json.loads(os.environ["LIGER_CASE"])
    settings = dict(case["settings"])
    fused = settings.pop("loss", None) is None
    recipe = make(Training, settings)
    getattr(monkey_patch, f"apply_liger_kernel_to_{case['config']['model_type']}")(fused_linear_cross_entropy=fused)
    model = build(SIZES | case["config"], recipe.dtype, "sdpa", "cuda", True).train()
    ids = torch.randint(0, SIZES["vocab_size"], (recipe.batch, recipe.sequence))
    labels = torch.randint(0, SIZES["vocab_size"], (recipe.batch, recipe.sequence))
    return apply_techniques(model, recipe), {"input_ids": ids, "labels": labels, "use_cache": False}, None


def cut() -> Any:
    """The loss alone."""
    sys.meta_path.insert(0, Finder())
    import torch

    torch.compile = lambda **_: lambda function: function
    import cut_cross_entropy.cce as cce

    def every(targets: Any, *_: Any) -> Any:
        """`_build_flat_valids`, where all labels count: how many do is a value."""
        shifted = targets[..., 1:]
        counted = shifted != -100
        found = torch.empty(shifted.numel(), 2, dtype=torch.int64, device=targets.device)
        valids = found.to(torch.int32)
        del counted, found
        return valids.sum(1)

    cce._build_flat_valids = every  # noqa: SLF001
    case = json.loads(os.environ["LIGER_CASE"])
    batch, length, width, words = case["cut"]
    model = torch.nn.Module()
    model.hidden = torch.nn.Parameter(torch.zeros(batch, length, width, dtype=torch.bfloat16))
    head = torch.float32 if case.get("head") else torch.bfloat16
    model.head = torch.nn.Parameter(torch.zeros(words, width, dtype=head))
    labels = torch.zeros(batch, length, dtype=torch.int64)

    def loss(model: Any, batch: Any) -> Any:
        return cce.cce_linear_cross_entropy(model.hidden, model.head, batch["labels"], shift=True)

    return model, {"labels": labels}, loss


def awq() -> Any:
    """One of AutoAWQ's layers (0.2.9), whose kernels give what has their results' shapes."""
    import torch

    case = json.loads(os.environ["LIGER_CASE"])
    batch, length, width_in, width_out = case["awq"]
    half = torch.float16
    sys.modules["awq_ext"] = kernels = types.ModuleType("awq_ext")
    kernels.dequantize_weights_cuda = lambda q, *_: torch.empty(width_in, width_out, dtype=half, device=q.device)
    kernels.gemm_forward_cuda = lambda x, *_: torch.empty(x.shape[0], width_out, dtype=half, device=x.device)
    for name in ("awq", "awq.modules", "awq.modules.linear"):  # without what their __init__ wants
        sys.modules[name] = package = types.ModuleType(name)
        package.__path__ = [f"{folder}/{name.replace('.', '/')}" for folder in sys.path]
    sys.meta_path.insert(0, Finder())
    from awq.modules.linear.gemm import WQLinear_GEMM

    model = torch.nn.Module()
    model.layer = WQLinear_GEMM(4, 128, width_in, width_out, bool(case.get("bias")), "cuda")
    dtype = torch.bfloat16 if case["dtype"] == "bf16" else half
    model.x = torch.nn.Parameter(torch.zeros(batch, length, width_in, dtype=dtype))
    return model.train(), {}, lambda model, _: model.layer(model.x).sum()


def hqq() -> Any:
    """One of HQQ's layers (0.2.8), packed by hand."""
    import torch
    from hqq.core.quantize import HQQLinear

    case = json.loads(os.environ["LIGER_CASE"])
    batch, length, width_in, width_out = case["hqq"]
    dtype, groups = torch.bfloat16, width_in * width_out // 64
    layer = HQQLinear(None, None, compute_dtype=dtype, device="cuda", initialize=False)
    layer.W_q = torch.nn.Parameter(torch.zeros(groups // 2, 64, dtype=torch.uint8), requires_grad=False)
    layer.bias, layer.ready, layer.device = None, True, "cuda"
    table = {name: torch.zeros(groups, 1, dtype=dtype) for name in ("scale", "zero")}
    switches = dict.fromkeys(("view_as_float", "quant_scale", "quant_zero"), False)
    sizes = {"nbits": 4, "group_size": 64, "axis": 1, "shape": torch.Size((width_out, width_in))}
    layer.meta = {**table, **switches, **sizes, "packing": "4bit_u8", "compute_dtype": dtype}
    model = torch.nn.Module()
    model.layer = layer
    model.x = torch.nn.Parameter(torch.zeros(batch, length, width_in, dtype=dtype))
    return model.train(), {}, lambda model, _: model.layer.forward_pytorch_backprop(model.x).sum()


def main() -> None:
    """Record every case."""
    import tempfile

    from weigh.measure.job import Job, words
    from weigh.measure.process import Process
    from weigh.recipes.settings import make
    from weigh.recipes.training import Training
    from weigh.trace.events import LOAD
    from weigh.trace.file import load
    from weigh.trace.peak import phase_peaks

    os.chdir(Path(__file__).parent)
    rows = []
    for case in [*CUT, *CASES, *AWQ, *HQQ]:
        os.environ["LIGER_CASE"] = json.dumps(case)
        settings = {name: value for name, value in case.get("settings", {}).items() if name != "loss"}
        with Process() as process, tempfile.TemporaryDirectory() as folder:
            output = f"{folder}/run.trace"
            function = f"record_liger:{next((name for name in ('awq', 'cut', 'hqq') if name in case), 'made')}"
            process.ask(Job("train", words(make(Training, settings)), function=function, output=output))
            trace = load(output)[0]
        if "--keep" in sys.argv:
            from weigh.trace.file import save

            save(trace, f"/tmp/liger-{len(rows)}.trace")
        peaks = [[f"{p.mark.phase} {p.mark.round}", p.peak] for p in phase_peaks(trace) if p.mark.phase != LOAD]
        rows.append({**case, **({"config": SIZES | case["config"]} if "config" in case else {}), "peaks": peaks})
        print(case, peaks)
    ROWS.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
