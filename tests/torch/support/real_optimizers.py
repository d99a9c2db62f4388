"""Steps of real optimizers on fake CUDA parameters: a script over jobs given as JSON.

It answers, for every step, with the live bytes above the parameters and gradients after each birth, and at the end.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
from types import SimpleNamespace
from typing import Any

import torch
from support.meter import Meter

from weigh.measure import faithful, fake_cuda
from weigh.measure.attention import Attention
from weigh.trace.events import STEP


class Counting(Meter):
    """Fake tensors have no values; what an optimizer asks for is the number of the step."""

    number = 0
    truth = True
    """What comparisons come to."""
    answer = 0.0
    """What is read from the device: a GradScaler found no infinity."""

    def _value(self, tensor: torch.Tensor) -> float | int:
        if tensor.dtype is torch.bool:
            return self.truth
        return self.answer if tensor.is_cuda else float(self.number)


def without_kernels() -> None:
    """bitsandbytes' CUDA kernels are not there; they update in place and return nothing."""
    from bitsandbytes import functional
    from bitsandbytes.optim import optimizer

    for name in ("optimizer_update_8bit_blockwise", "optimizer_update_32bit"):
        setattr(functional, name, lambda *_, **__: None)
    optimizer.sync_gpu = lambda _: None
    functional.get_paged = lambda *shape, dtype, device: torch.zeros(
        shape, dtype=dtype
    )  # managed memory is not PyTorch's
    functional.fill = functional.prefetch_tensor = lambda *_, **__: None
    torch.cuda.synchronize = lambda *_: None


def without_generators() -> None:
    """A generator on a device needs the device; what is drawn is as large without one."""
    projector = importlib.import_module("apollo_torch.random_projector")
    projector.stable_randn = lambda shape, seed, device, dtype: torch.randn(shape, device=device, dtype=dtype)


def with_kernels_of_triton() -> None:
    """optimi's are its default where Triton is; they update in place, and leave a number zeroed."""
    module = importlib.import_module("optimi.stableadamw")
    module._default_to_triton = lambda _: True
    module._triton_stableadamw = lambda *_, **__: None


def without_streams() -> None:
    """Neither a second stream nor pinned memory moves a byte of the device's."""
    module = importlib.import_module("torchao.optim.cpu_offload")
    module.get_available_devices = lambda: ["cuda"]
    torch.cuda.Stream = lambda: SimpleNamespace(synchronize=lambda: None)
    real = torch.empty_like

    def unpinned(*args: Any, **settings: Any) -> Any:
        settings.pop("pin_memory", None)
        return real(*args, **settings)

    torch.empty_like = unpinned


def without_extension() -> None:
    """apex's kernel updates in place; `fused_adam.py` of its sources is all that is needed of it."""
    applier = SimpleNamespace(multi_tensor_applier=Applier())
    sys.modules["apex.multi_tensor_apply"] = applier  # type: ignore[assignment]
    sys.modules["apex"] = SimpleNamespace(multi_tensor_apply=applier)  # type: ignore[assignment]
    sys.modules["amp_C"] = Kernels()  # type: ignore[assignment]


class Applier:
    """Applies nothing."""

    available = True

    def __call__(self, *_: Any) -> None: ...


class Kernels:
    """Has every kernel."""

    def __getattr__(self, name: str) -> None: ...


PREPARATIONS = {
    "fused_adam": without_extension,
    "torchao": without_streams,
    "optimi": with_kernels_of_triton,
    "bitsandbytes": without_kernels,
    "galore_torch": without_kernels,
    "apollo_torch": without_generators,
}
"""What a package cannot do without a GPU, and does without a byte more or less."""


def levels(job: dict[str, Any], meter: Counting) -> list[list[int]]:
    """Of every step of a job."""
    parameters: list[Any] = []
    for shape, dtype in job["parameters"]:
        parameter = torch.nn.Parameter(torch.zeros(shape, dtype=getattr(torch, dtype), device="cuda"))
        parameter.grad = torch.zeros_like(parameter)
        parameters.append(parameter)
    meter.truth, meter.answer = job.get("truth", True), job.get("answer", 0.0)
    if job["class"].startswith("torchao"):
        torch.compile = lambda *_, **__: lambda *_: None  # the states alone
    module, _, name = job["class"].rpartition(".")
    PREPARATIONS.get(module.partition(".")[0], lambda: None)()
    settings = {k: getattr(torch, v) if k.endswith("_dtype") else v for k, v in job["settings"].items()}
    if job.get("groups"):  # low-rank methods want matrices and the rest apart
        parameters = [{"params": [p], **(job["groups"] if p.ndim == 2 else {})} for p in parameters]
    optimizer = getattr(importlib.import_module(module), name)(parameters, **settings)
    if hasattr(optimizer, "train"):  # schedule-free ones
        optimizer.train()
    meter.mark(STEP)
    answer = []
    scaler = torch.amp.GradScaler("cuda") if job.get("scaler") else None
    loss = torch.zeros((), device="cuda")
    base = meter.restart()
    for _ in range(job["steps"]):
        meter.number += 1
        if scaler is None:
            optimizer.step()
        else:
            scaler.scale(loss)
            scaler.step(optimizer)
            scaler.update()
        if "-v" in sys.argv:
            print(meter.ops, file=sys.stderr)
        answer.append([level - base for level in meter.births] + [meter.live - base])
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None or parameter.grad.shape != parameter.shape:
                    parameter.grad = torch.zeros_like(parameter)
        del parameter
        meter.restart()
    return answer


def main() -> None:
    jobs = json.loads(sys.argv[1])
    answers: list[Any] = []
    fake_cuda.install()
    for job in jobs:
        with faithful.as_real(Attention(None)), Counting("cuda") as meter:
            try:
                answers.append(levels(job, meter))
            except Exception as error:  # the test shows it
                answers.append(f"{type(error).__name__}: {error}")
        gc.collect()
    print(json.dumps(answers))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
