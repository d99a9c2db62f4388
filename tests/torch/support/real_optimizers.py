"""Steps of real optimizers on fake CUDA parameters: a script over jobs given as JSON.

It answers, for every step, with the live bytes above the parameters and gradients after each birth, and at the end.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
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

    def _value(self, tensor: torch.Tensor) -> float | int:
        if tensor.dtype is torch.bool:
            return self.truth
        return 0.0 if tensor.is_cuda else float(self.number)  # a GradScaler found no infinity


def without_kernels() -> None:
    """bitsandbytes' CUDA kernels are not there; they update in place and return nothing."""
    from bitsandbytes import functional
    from bitsandbytes.optim import optimizer

    for name in ("optimizer_update_8bit_blockwise", "optimizer_update_32bit"):
        setattr(functional, name, lambda *_, **__: None)
    optimizer.sync_gpu = lambda _: None


def levels(job: dict[str, Any], meter: Counting) -> list[list[int]]:
    """Of every step of a job."""
    parameters: list[Any] = []
    for shape, dtype in job["parameters"]:
        parameter = torch.nn.Parameter(torch.zeros(shape, dtype=getattr(torch, dtype), device="cuda"))
        parameter.grad = torch.zeros_like(parameter)
        parameters.append(parameter)
    meter.truth = job.get("truth", True)
    if job["class"].startswith("torchao"):
        torch.compile = lambda *_, **__: lambda *_: None  # the states alone
    if job["class"].startswith("bitsandbytes"):
        without_kernels()
    module, _, name = job["class"].rpartition(".")
    if job.get("groups"):  # low-rank methods want matrices and the rest apart
        parameters = [{"params": [p], **(job["groups"] if p.ndim == 2 else {})} for p in parameters]
    optimizer = getattr(importlib.import_module(module), name)(parameters, **job["settings"])
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
