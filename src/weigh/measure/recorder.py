"""Every storage's birth and death while PyTorch runs, seen by a dispatch mode, as a `Trace`.

It sees what ops return, not what kernels allocate inside: ops from outside PyTorch are counted as opaque.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch._guards import active_fake_mode
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from weigh.dtypes import get
from weigh.errors import InputError, UnknownNameError
from weigh.measure.watcher import Watcher, local_tensors, plain_path
from weigh.trace.events import (
    ACTIVATION,
    BACKWARD,
    BUFFER,
    CLIP,
    COMMUNICATION,
    DECODE,
    FORWARD,
    GRADIENT,
    INPUT,
    KV_CACHE,
    LOAD,
    OPTIMIZER_STATE,
    PREFILL,
    RECURRENT_STATE,
    STEP,
    TEMPORARY,
    UNSHARDED,
    WEIGHT,
    Allocation,
    Mark,
    Trace,
)

aten = torch.ops.aten

DEFAULT_PURPOSE = {
    LOAD: TEMPORARY,
    FORWARD: ACTIVATION,
    BACKWARD: TEMPORARY,
    CLIP: TEMPORARY,
    STEP: TEMPORARY,
    PREFILL: ACTIVATION,
    DECODE: ACTIVATION,
}
"""What a storage is for of which nothing else is known."""

PYTORCH = frozenset({"aten", "prim", "prims", "profiler"})
"""Namespaces whose ops return what they allocate."""
COLLECTIVES = frozenset({"c10d", "_c10d_functional", "fsdp"})
"""Those that move bytes between ranks, from buffer to buffer; what NCCL keeps lies outside PyTorch's allocator."""


class Recorder(TorchDispatchMode, Watcher):
    """Records the storages of one device, while it is entered."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.allocations: list[Allocation] = []
        self.events: list[int] = []
        self.marks: list[Mark] = []
        self.live = 0
        self.opaque: Counter[str] = Counter()
        """Ops whose inside cannot be seen, and how often they ran."""
        self.collectives: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        """Every op that ran."""
        self._phase = LOAD
        self._storages: dict[int, int] = {}
        """PyTorch's address of each living storage, and the number of its birth."""
        self._references: dict[int, Any] = {}
        self._emptied: dict[int, Any] = {}
        """Storages of the recorder's device that were resized to nothing, and may be filled again."""
        self._modules = _Modules()
        self._last: int | None = None
        self._paused = 0
        self._communicating = 0
        self._fake_mode: Any = None

    # -- what the loop tells
    def mark(self, phase: str, round: int = 0) -> None:
        self._phase = phase
        self.marks.append(Mark(len(self.events), phase, round))

    def loaded(self, model: torch.nn.Module, inputs: list[torch.Tensor]) -> None:
        self._modules.name(model)
        for name, buffer in model.named_buffers():
            self.label(buffer, BUFFER, name)
        for name, parameter in model.named_parameters():
            self.label(parameter, WEIGHT, name)
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda p: self.label(p.grad, GRADIENT))
        self.reads(inputs)

    def reads(self, inputs: list[torch.Tensor]) -> None:
        for tensor in inputs:
            self.label(tensor, INPUT)

    def stepped(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        names = {id(p): name for name, p in model.named_parameters()}
        for parameter, state in optimizer.state.items():
            for leaf in tree_leaves(state):
                if isinstance(leaf, torch.Tensor):
                    self.label(leaf, OPTIMIZER_STATE, names.get(id(parameter), ""))

    def cached(self, tensors: list[tuple[torch.Tensor, bool]]) -> None:
        for tensor, is_state in tensors:
            self.label(tensor, RECURRENT_STATE if is_state else KV_CACHE)

    def label(self, tensor: torch.Tensor, purpose: str, name: str | None = None) -> None:
        """Say what a tensor's storage is for, and what it is called, if it is one that was recorded."""
        for local in local_tensors(tensor):
            number = self._storages.get(local.untyped_storage()._cdata)
            if number is not None:
                allocation = self.allocations[number - 1]
                allocation.purpose = purpose
                if name is not None:
                    allocation.path = plain_path(name)

    def adopt(self, tensor: torch.Tensor) -> None:
        """Record a tensor that was there before the recording."""
        for local in local_tensors(tensor):
            self._see(local, "(already there)")

    def end(self) -> None:
        self._last = len(self.events)

    def trace(self) -> Trace:
        """What was recorded until the end, or so far."""
        return Trace(list(self.allocations), self.events[: self._last], list(self.marks))

    # -- what PyTorch does
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(t.__name__ == "DTensor" for t in types):
            return NotImplemented  # it comes back as ops on this rank's own tensors
        if func is aten._local_scalar_dense.default and isinstance(args[0], FakeTensor) and args[0].constant is None:
            return self._value(args[0])
        if func.__name__ == "wait_tensor.default" and isinstance(args[0], FakeTensor):
            result = args[0]  # a real one returns its argument; the stand-in would make another
        else:
            result = func(*args, **(kwargs or {}))
        self._count(func)
        if not self._paused and active_fake_mode() is self._fake_mode:
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor):
                    for local in local_tensors(leaf):
                        self._see(local, func._schema.name)
        return result

    def _count(self, func: Any) -> None:
        name, namespace = func._schema.name, func.namespace
        self.seen[name] += 1
        if namespace in COLLECTIVES:
            self.collectives[name] += 1
        elif namespace not in PYTORCH:
            self.opaque[name] += 1

    def _value(self, tensor: torch.Tensor) -> float | int:
        """A number out of a tensor without values: optimizers ask for their count of steps, models must not ask."""
        if self._phase not in (LOAD, STEP, CLIP):
            raise InputError(
                "asks for the value of a tensor, on which its control flow or its shapes depend",
                where=self._modules.innermost() or "the model",
                hint="It cannot be traced without values: run it for real with `weigh measure`.",
            )
        return 1.0 if tensor.dtype.is_floating_point else 1

    def _see(self, tensor: torch.Tensor, op: str) -> None:
        if tensor.device.type != self.device:
            return
        storage = tensor.untyped_storage()
        if storage._cdata not in self._storages and storage.nbytes():
            self._birth(storage, op, tuple(tensor.shape), _dtype_name(tensor.dtype))

    def _birth(self, storage: torch.UntypedStorage, op: str, shape: tuple[int, ...], dtype: str) -> None:
        path, again = self._modules.current()
        purpose = DEFAULT_PURPOSE[self._phase]
        if op == "resize_":
            purpose = UNSHARDED
        elif self._communicating:
            purpose = COMMUNICATION
        elif again:
            purpose = ACTIVATION  # checkpointing runs a part of the forward pass again
        num_bytes = storage.nbytes()
        self.allocations.append(Allocation(num_bytes, op, path, purpose, self._phase, shape, dtype, None))
        number = len(self.allocations)
        self.events.append(number)
        self.live += num_bytes
        key = storage._cdata
        self._storages[key] = number
        self._references[number] = weakref.ref(storage, lambda _: self._death(key, number))

    def _death(self, key: int, number: int) -> None:
        if self._references.pop(number, None) is not None:
            self.events.append(-number)
            self.live -= self.allocations[number - 1].num_bytes  # type: ignore[assignment]
            if self._storages.get(key) == number:
                del self._storages[key]

    # -- what is not dispatched
    def __enter__(self) -> Any:
        self._fake_mode = active_fake_mode()
        self._restore: list[Callable[[], None]] = []
        self._replace(torch.UntypedStorage, "resize_", self._resize)
        self._replace(torch.nn.Module, "__call__", self._modules.call)
        if "torch.distributed.tensor._sharding_prop" in sys.modules:
            propagator = sys.modules["torch.distributed.tensor._sharding_prop"].ShardingPropagator
            self._replace(propagator, "_propagate_tensor_meta_non_cached", self._propagate)
        if "torch.distributed.fsdp._fully_shard._fsdp_param_group" in sys.modules:
            groups = sys.modules["torch.distributed.fsdp._fully_shard._fsdp_param_group"]
            self._replace(groups, "foreach_all_gather", self._communicate)
            self._replace(groups, "foreach_reduce", self._communicate)
        return super().__enter__()

    def __exit__(self, *exception: Any) -> Any:
        for restore in reversed(self._restore):
            restore()
        return super().__exit__(*exception)

    def _replace(self, owner: Any, name: str, replacement: Callable[..., Any]) -> None:
        """A method becomes a call of `replacement` with the method first."""
        original = getattr(owner, name)
        setattr(owner, name, lambda *args, **kwargs: replacement(original, *args, **kwargs))
        self._restore.append(lambda: setattr(owner, name, original))

    def _resize(self, original: Any, storage: torch.UntypedStorage, num_bytes: int) -> Any:
        """FSDP frees and fills gathered parameters through their storage, which no dispatch mode sees."""
        key = storage._cdata
        known = key in self._storages or key in self._emptied
        result = original(storage, num_bytes)
        if not known:
            return result
        number = self._storages.get(key)
        if number is not None and storage.nbytes() != self.allocations[number - 1].num_bytes:
            self.allocations[number - 1].purpose = UNSHARDED  # what FSDP empties, it will fill again
            self._death(key, number)
            self._emptied[key] = weakref.ref(storage, lambda _: self._emptied.pop(key, None))
        if storage.nbytes() and key not in self._storages:
            self._emptied.pop(key, None)
            self._birth(storage, "resize_", (num_bytes,), "u8")
        return result

    def _propagate(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """DTensor learns an op's output by running it on fake tensors of the global shape, which cost nothing."""
        self._paused += 1
        try:
            return original(*args, **kwargs)
        finally:
            self._paused -= 1

    def _communicate(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """What FSDP allocates to gather or to reduce."""
        self._communicating += 1
        try:
            return original(*args, **kwargs)
        finally:
            self._communicating -= 1

    def check_sizes(self) -> None:
        """That no storage changed its size unseen."""
        for number, reference in self._references.items():
            storage = reference()
            recorded = self.allocations[number - 1]
            if storage is not None and storage.nbytes() != recorded.num_bytes:
                raise AssertionError(f"a storage was resized unseen to {storage.nbytes()}: {recorded}")


class _Modules:
    """Which module runs: in the forward pass by the calls, in the backward pass by the calls that made the nodes."""

    def __init__(self) -> None:
        self.paths: dict[int, str] = {}
        self.stack: list[str] = []
        self.nodes: dict[int, str] = {}
        """The module of every autograd node, by the node's sequence number."""
        self.next_node = 0

    def name(self, model: torch.nn.Module) -> None:
        self.paths = {id(module): plain_path(name) for name, module in model.named_modules()}

    def call(self, original: Any, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        path = self.paths.get(id(module))
        if path is None:
            return original(module, *args, **kwargs)
        forward = not _in_backward()
        if forward:
            self._claim_nodes()
        self.stack.append(path)
        try:
            return original(module, *args, **kwargs)
        finally:
            if forward:
                self._claim_nodes()
            self.stack.pop()

    def current(self) -> tuple[str, bool]:
        """The path, and whether a part of the forward pass is run again."""
        if not _in_backward():
            self._claim_nodes()
            return self.innermost(), False
        if self.stack:
            return self.stack[-1], True
        node = torch._C._current_autograd_node()
        return ("" if node is None else self.nodes.get(node._sequence_nr(), "")), False

    def innermost(self) -> str:
        return self.stack[-1] if self.stack else ""

    def _claim_nodes(self) -> None:
        """The nodes made since the last call belong to the innermost module."""
        number = torch.autograd._get_sequence_nr()
        if self.stack:
            self.nodes.update(dict.fromkeys(range(self.next_node, number), self.stack[-1]))
        self.next_node = number


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


@cache
def _dtype_name(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    try:
        return get(name).name
    except UnknownNameError:
        return name  # complex numbers and the like, which no model stores
