"""Our side: the same programs on ghost tensors, measured as the witness measures them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from support.programs import PROGRAMS

from weigh import dtypes
from weigh.dims import product
from weigh.ghost import ops
from weigh.ghost.autocast import autocast
from weigh.ghost.autograd import backward
from weigh.ghost.ledger import Ledger
from weigh.ghost.state import no_grad, recording, saved_tensors_hooks
from weigh.ghost.tensor import Storage, Tensor, normalise
from weigh.kernels import kernels
from weigh.models.bloom import BloomGelu
from weigh.techniques.checkpointing import checkpoint, reentrant_checkpoint, selective_checkpoint

GHOST = SimpleNamespace(
    **{name: value for name, value in vars(ops).items() if not name.startswith("_")},
    autocast=autocast,
    bloom_gelu=BloomGelu(),
    checkpoint=checkpoint,
    reentrant_checkpoint=reentrant_checkpoint,
    selective_checkpoint=selective_checkpoint,
    dtype=dtypes.get,
    no_grad=no_grad,
)


LONG_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""PyTorch's names where they are not ours."""


def make(spec: dict[str, Any]) -> Tensor:
    """A leaf of the drawn layout."""
    dtype, shape = dtypes.get(spec["dtype"]), tuple(spec["shape"])
    storage = Storage(spec["size"] * dtype.itemsize, "input", shape, dtype)
    tensor = Tensor(storage, shape, normalise(shape, tuple(spec["strides"])), dtype, product(shape))
    tensor.requires_grad = spec["grad"]
    return tensor


def describe(tensor: Tensor | None) -> Any:
    """Shape, dtype and the strides that count."""
    if tensor is None:
        return None
    strides = [step if size != 1 else 0 for size, step in zip(tensor.shape, tensor.stride(), strict=True)]
    return [list(tensor.shape), LONG_NAMES.get(tensor.dtype.name, tensor.dtype.name), strides]


class Levels:
    """Reads the live bytes off a ledger as it grows."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.read = 0
        self.live = 0

    def births(self) -> tuple[list[int], list[str]]:
        """The live bytes after every birth since the last call, and the births' ops."""
        allocations, events = self.ledger.allocations, self.ledger.events
        levels, names = [], []
        for event in events[self.read :]:
            allocation = allocations[abs(event) - 1]
            self.live += int(allocation.num_bytes if event > 0 else -allocation.num_bytes)
            if event > 0:
                levels.append(self.live)
                names.append(allocation.op)
        self.read = len(events)
        return levels, names


def saved_bytes(request: dict[str, Any]) -> int:
    """The bytes that the forward pass keeps for the backward pass, each storage once."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.storage.number] = int(tensor.storage.num_bytes)
        return tensor

    inputs = [make(spec) for spec in request["inputs"]]
    with saved_tensors_hooks(pack):
        kept = PROGRAMS[request["program"]].body(GHOST, *inputs, **request["attributes"])
    del kept
    return sum(storages.values())


def surroundings(request: dict[str, Any]) -> Any:
    """What a dispatch mode sees on the device (fake tensors on CUDA, real ones on the CPU), or a run without one."""
    mode = request.get("mode", True)
    return recording(kernels(request["device"], traced=mode), traced=mode)


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Run a program forward and backward; the bytes are those above what lived before."""
    with surroundings(request):
        answer: dict[str, Any] = {"saved": saved_bytes(request)}
    with surroundings(request) as ledger:
        inputs = [make(spec) for spec in request["inputs"]]
        levels = Levels(ledger)
        levels.births()
        base = levels.live
        result = PROGRAMS[request["program"]].body(GHOST, *inputs, **request["attributes"])
        outputs = [] if result is None else result if isinstance(result, list) else [result]
        del result
        answer["outputs"] = [describe(t) for t in outputs]
        births, answer["forward ops"] = levels.births()
        answer["forward"] = [level - base for level in births]
        answer["after forward"] = levels.live - base
        roots = [t for t in outputs if t.requires_grad and not t.is_leaf]
        if roots:
            if request["seed"] == "expanded":
                seeds = [ops.expand(ops.ones((1,) * t.ndim, t.dtype), t.shape) for t in roots]
            else:
                seeds = [ops.ones(t.shape, t.dtype) for t in roots]
            backward(roots, list(seeds))
            births, answer["backward ops"] = levels.births()
            answer["backward"] = [level - base for level in births]
            answer["after backward"] = levels.live - base
            answer["gradients"] = [describe(t.grad) for t in inputs]
            del seeds
        del roots, outputs
        levels.births()
        answer["at last"] = levels.live - base
    return answer
