"""ZeRO stage 3, the gradients and the update: `deepspeed/runtime/zero/stage3.py` (0.19.6), as one rank sees it.

Mirrors `DeepSpeedZeroOptimizer_Stage3` around an optimizer, with one group of parameters, contiguous gradients, and
gradients in the parameters' dtype; the parameters are `techniques/zero3.py`'s. The names are upstream's.

- The partitions of what is trained lie in one flat tensor; fp32 copies of it, and the states, by `sub_group_size`.
- The bucket in which gradients are put together, and the partitions of the reduced ones, are there all the time.
- A bucket is put in the ranks' order before it is reduced, which is a second one; a gradient that is larger is reduced
  by itself.
- With `offload` fp32 copies, gradients and states are on the host, where the optimizer steps; the partitions of reduced
  gradients come back to the device for a moment, bucket by bucket.
- In the step the gradients' norms are taken in fp64; then a sub-group after the other is flattened, cast to fp32 and
  updated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Protocol

from weigh.dtypes import FLOAT32, FLOAT64
from weigh.errors import UsageError
from weigh.ghost import ops
from weigh.ghost.autograd import queue_callback
from weigh.ghost.host import Host
from weigh.ghost.nn import Parameter
from weigh.ghost.state import no_grad, state
from weigh.ghost.tensor import Tensor, empty
from weigh.optimizers import Choice, Optimizer, optimizer
from weigh.trace.events import COMMUNICATION, GRADIENT, OPTIMIZER_STATE, TEMPORARY, WEIGHT

HOST_STATES = "fp32 weights, gradients and optimizer states of ZeRO stage 3, on the host"


class Partitioned(Protocol):
    """A parameter of `techniques/zero3.py`."""

    tensor: Tensor
    partition: Tensor
    numel: int
    partition_numel: int
    world: int
    host: Host | None

    def hold_partition(self) -> None:
        """Of a single rank a partition is all there is."""


class Coordinator(Protocol):
    """That of `techniques/zero3.py`."""

    of_partition: dict[int, Partitioned]

    def release_all(self) -> None:
        """Divide every parameter again."""

    def release_leftovers(self) -> None:
        """Divide what the backward pass left whole."""

    def gather_persistent(self) -> None:
        """Put the small parameters together."""

    def invalidate_secondary(self) -> None:
        """Drop second partitions of what was trained."""


class Zero3(Optimizer):
    """`DeepSpeedZeroOptimizer_Stage3`."""

    clips = True

    def __init__(
        self, choice: Choice, reduce_bucket: int, sub_group: int, accumulation: int = 1, offload: bool = False
    ) -> None:
        super().__init__(choice)
        self.accumulation, self.offload = accumulation, offload
        self.micro_step = 0
        self.norms: list[Tensor] = []
        self.choice = choice
        self.reduce_bucket_size, self.sub_group_size = reduce_bucket, sub_group
        self.coordinator: Coordinator
        self.callback_queued = False
        self.bucket: list[Partitioned] = []
        self.elements = 0
        self.inner: list[Optimizer] = []

    def own(self, parameters: list[Parameter]) -> None:
        """Flatten the partitions, copy them in fp32, and make the buffers.

        Raises:
            UsageError: the parameters have several dtypes.
        """
        super().own(parameters)
        self.coordinator = parameters[0].module.zero3  # type: ignore[attr-defined]
        self.params = [self.coordinator.of_partition[id(p.tensor)] for p in parameters]
        if len({p.tensor.dtype for p in self.params}) > 1:
            raise UsageError("ZeRO flattens parameters of one dtype, and the model has several", where="shard")
        self.dtype = self.params[0].tensor.dtype
        self.host = Host(HOST_STATES)
        self._flatten(sum(p.partition_numel for p in self.params))
        for param in self.params:
            param.partition.storage = self.lp_param_buffer.storage
            param.hold_partition()
        self.sub_groups = _sub_groups([p.partition_numel for p in self.params], self.sub_group_size)
        with self.where_states_are():
            self.masters = [self._master(size) for size in self.sub_groups]
            empty((max(self.sub_groups),), FLOAT32, "aten::zeros", purpose=TEMPORARY)
            for size, master in zip(self.sub_groups, self.masters, strict=True) if self.offload else ():
                master.grad = empty((size,), FLOAT32, "aten::zeros", purpose=GRADIENT)
        self.buffer = empty((self.reduce_bucket_size,), self.dtype, "aten::empty", purpose=COMMUNICATION)
        with self.where_states_are():
            self.grad_partitions = empty((sum(self.sub_groups),), self.dtype, "aten::zeros", purpose=GRADIENT)
            for number, master in enumerate(self.masters):
                inner = optimizer(self.choice)
                inner.own([Parameter(master, (f"zero3.fp32_partition.{number}",), parameters[0].module)])
                self.inner.append(inner)
        for param in self.params:
            param.tensor.on_accumulated = partial(self.reduce_ready, param)

    @contextmanager
    def where_states_are(self) -> Iterator[None]:
        """On the host, where they are offloaded."""
        with self.host.instead() if self.offload else nullcontext():
            yield

    def _flatten(self, numel: int) -> None:
        """All that is trained in one tensor: by way of the host (`defragment`), or beside it on the host."""
        host = self.params[0].host
        if host is None:
            for param in self.params:
                param.partition.storage.release()
        with host.instead() if host is not None else nullcontext():
            self.lp_param_buffer = empty((numel,), self.dtype, "aten::_to_copy", purpose=WEIGHT)

    def _master(self, size: int) -> Tensor:
        if self.dtype is FLOAT32 and not self.offload:
            return Tensor(self.lp_param_buffer.storage, (size,), None, FLOAT32, size)
        converted = empty((size,), FLOAT32, "aten::_to_copy", purpose=TEMPORARY)
        master = empty((size,), FLOAT32, "aten::clone", purpose=OPTIMIZER_STATE)
        del converted
        return master

    # -- the backward pass
    def reduce_ready(self, param: Partitioned) -> None:
        """`reduce_ready_partitions_and_remove_grads`, when a gradient has been accumulated."""
        if not self.callback_queued:
            self.callback_queued = True
            queue_callback(self._epilogue)
        with no_grad():
            if self.elements + param.numel > self.reduce_bucket_size and self.elements:
                self._reduce_and_partition()
            if self.elements + param.numel <= self.reduce_bucket_size:
                tensor = param.tensor
                tensor.grad = Tensor(self.buffer.storage, tensor.shape, None, self.dtype, tensor.numel)
            self.bucket.append(param)
            self.elements += param.numel

    def _reduce_and_partition(self) -> None:
        """`reduce_scatter_coalesced` and `partition_grads`."""
        flat = None
        if len(self.bucket) > 1 or self.bucket[0].numel % self.bucket[0].world:
            padded = sum(p.partition_numel * p.world for p in self.bucket)
            flat = empty((padded,), self.dtype, "aten::cat", purpose=COMMUNICATION)
        moved = self.elements * self.dtype.itemsize
        if moved:
            state.ledger.call("c10d::reduce_scatter", 0, moved, moved // self.bucket[0].world)
        buffers = []
        for param in self.bucket:
            if self.offload:
                buffers.append(self._to_host(param))
            param.tensor.grad = None
        del flat, buffers
        self.bucket.clear()
        self.elements = 0

    def _to_host(self, param: Partitioned) -> Tensor:
        """`partition_grads`: a copy on the device of what is on the host, to take its norm, and in fp32."""
        numel = param.partition_numel
        if self.host.apart:
            piece = empty((numel,), self.dtype, "aten::_to_copy", purpose=GRADIENT)
        else:
            piece = Tensor(self.grad_partitions.storage, (numel,), None, self.dtype, numel)
        if self.micro_step == self.accumulation - 1:
            wide = ops.to(piece, FLOAT64)
            norm = ops.vector_norm(wide)
            del wide
            self.norms.append(ops.pow(ops.pow(norm, 2), 0.5))
            ops.to(piece, FLOAT32)
        return piece

    def _epilogue(self) -> None:
        self.callback_queued = False
        with no_grad():
            if self.bucket:
                self._reduce_and_partition()
            self.coordinator.release_leftovers()
        self.micro_step = (self.micro_step + 1) % self.accumulation

    # -- the step
    def prepare(self) -> None:
        with self.where_states_are():
            for inner in self.inner:
                inner.prepare()

    def step(self) -> None:
        """Everything is divided again; norms; a sub-group after the other; the small parameters come back."""
        with no_grad():
            self.coordinator.release_all()
            if self.offload:
                self._step_on_host()
                return
            self._norms()
            for size, master, inner in zip(self.sub_groups, self.masters, self.inner, strict=True):
                flat = empty((size,), self.dtype, "aten::cat", purpose=TEMPORARY) if len(self.params) > 1 else None
                single = flat
                if self.dtype is not FLOAT32 or single is None:
                    single = empty((size,), FLOAT32, "aten::_to_copy", purpose=GRADIENT)
                master.grad = single.alias()
                single.storage.relabel(GRADIENT)
                del flat, single
                inner.step()
                master.grad = None
            self._post_step()

    def _post_step(self) -> None:
        self.coordinator.gather_persistent()
        self.coordinator.invalidate_secondary()

    def _step_on_host(self) -> None:
        with self.where_states_are():
            for inner in self.inner:
                inner.step()
        self.norms.clear()
        self.elsewhere[HOST_STATES] = self.host.peak()
        self._post_step()

    def _norms(self) -> None:
        """`get_grad_norm_direct`, for every sub-group."""
        norms = []
        for param in self.params:
            piece = Tensor(self.grad_partitions.storage, (param.partition_numel,), None, self.dtype, param.numel)
            wide = ops.to(piece, FLOAT64)
            norms.append(ops.vector_norm(wide))
            del wide
        stacked = ops.stack_scalars(norms, len(norms))
        squares = ops.pow(stacked, 2)
        total = ops.to(ops.sum(squares, (0,)), FLOAT32)
        del squares, stacked
        ops.pow(total, 0.5)


def _sub_groups(sizes: list[int], limit: int) -> list[int]:
    """`_create_fp16_sub_groups`: a group ends with the parameter that fills it."""
    if sum(sizes) <= limit:
        return [sum(sizes)]
    groups = [0]
    for number, size in enumerate(sizes):
        groups[-1] += size
        if groups[-1] >= limit and number < len(sizes) - 1:
            groups.append(0)
    return groups
