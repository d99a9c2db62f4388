"""The real side: a process that runs programs in real PyTorch and says what they allocated.

It reads one JSON request a line and answers each with one line. "cuda" tensors are fake; "cpu" tensors are real.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from contextlib import nullcontext
from typing import Any

import support.attention_programs
import support.composite_programs
import support.family_programs
import support.in_place_programs
import support.matrix_programs
import support.recurrent_programs  # noqa: F401  they enter their programs
import torch
from support.inputs import Input
from support.meter import Meter
from support.profiled import Levels, profiler
from support.programs import CPU, CUDA, PROGRAMS
from support.torch_ops import TorchOps
from torch._subclasses.fake_tensor import FakeTensorMode

from weigh.measure import fake_cuda


def make(spec: Input, device: str) -> torch.Tensor:
    """A leaf of the drawn layout."""
    whole = torch.zeros(spec["size"], dtype=getattr(torch, spec["dtype"]), device=device)
    tensor = whole.as_strided(spec["shape"], spec["strides"])
    return tensor.detach().requires_grad_(spec["grad"])


def describe(tensor: torch.Tensor | None) -> Any:
    """Shape, dtype and the strides that count."""
    if tensor is None:
        return None
    strides = [step if size != 1 else 0 for size, step in zip(tensor.shape, tensor.stride(), strict=True)]
    return [list(tensor.shape), str(tensor.dtype).removeprefix("torch."), strides]


def saved_bytes(request: dict[str, Any], meter: Meter) -> int:
    """The bytes that the forward pass keeps for the backward pass, each storage once."""
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata in meter.known:
            storages[storage._cdata] = storage.nbytes()
        return tensor

    inputs = [make(spec, meter.device) for spec in request["inputs"]]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = PROGRAMS[request["program"]].body(TorchOps(meter.device), *inputs, **request["attributes"])
    del kept
    return sum(storages.values())


def measure(request: dict[str, Any], meter: Meter) -> dict[str, Any]:
    """Run a program forward and backward; the bytes are those above what lived before."""
    device = meter.device
    answer: dict[str, Any] = {"saved": saved_bytes(request, meter)}
    inputs = [make(spec, device) for spec in request["inputs"]]
    base = meter.restart()
    result = PROGRAMS[request["program"]].body(TorchOps(device), *inputs, **request["attributes"])
    outputs = [] if result is None else result if isinstance(result, list) else [result]
    del result
    answer["outputs"] = [describe(t) for t in outputs]
    answer["forward"] = [level - base for level in meter.births]
    answer["forward ops"] = meter.ops
    answer["after forward"] = meter.restart() - base
    roots = [t for t in outputs if t.requires_grad and not t.is_leaf]
    if roots:
        if request["seed"] == "expanded":
            seeds = [torch.ones((1,) * t.ndim, dtype=t.dtype, device=device).expand(t.shape) for t in roots]
        else:
            seeds = [torch.ones(t.shape, dtype=t.dtype, device=device) for t in roots]
        torch.autograd.backward(roots, seeds)
        answer["backward"] = [level - base for level in meter.births]
        answer["backward ops"] = meter.ops
        answer["after backward"] = meter.live - base
        answer["gradients"] = [describe(t.grad) for t in inputs]
        del seeds
    del roots, outputs
    answer["at last"] = meter.live - base
    return answer


def measure_without_mode(request: dict[str, Any]) -> dict[str, Any]:
    """The peak of a backward pass on the CPU, above what lived before the program, from the allocator itself."""
    with profiler() as watched:
        inputs = [make(spec, CPU) for spec in request["inputs"]]
        with torch.profiler.record_function("the start"):
            pass
        output = PROGRAMS[request["program"]].body(TorchOps(CPU), *inputs, **request["attributes"])
        with torch.profiler.record_function("the backward pass"):
            output.backward(torch.ones_like(output))
    levels = Levels(watched)
    base = levels.during("the start")[1]
    return {"peak of backward": levels.during("the backward pass")[0] - base}


def main() -> None:
    fake_cuda.install()
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        device = request["device"]
        try:
            if not request.get("mode", True):
                answer = measure_without_mode(request)
            else:
                with FakeTensorMode() if device == CUDA else nullcontext(), Meter(device) as meter:
                    answer = measure(request, meter)
        except Exception as error:  # the test shows it
            answer = {"error": f"{type(error).__name__}: {error}"}
        gc.collect(0)
        print(json.dumps(answer), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
