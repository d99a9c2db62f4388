"""ZeRO stages 1 and 2, as `deepspeed/runtime/zero/stage_1_and_2.py` (0.19.6) does them, as one rank sees it.

Mirrors `DeepSpeedZeroOptimizer` around an optimizer, with one group of parameters, contiguous gradients and gradients
in the parameters' dtype. The names are upstream's. What decides the memory:

- parameters are views of one flat tensor, padded to twice the ranks; this rank keeps an fp32 copy of its partition, and
  the optimizer knows that alone;
- gradients are copied into a bucket (`reduce_bucket_size`; two with `overlap_comm`), which is there from the first
  gradient of a backward pass to the reduction of the last; a larger one is reduced where it is;
- after their reduction gradients of this rank's partition are copied into one more buffer; the others are dropped
  (stage 2), or live on in the bucket (stage 1);
- in the step the gradients' norm is taken in fp64, one after the other; then they are flattened, and cast to fp32.

With `offload` the fp32 copy, its gradient and the states stand on the host, where the optimizer steps; so do gradients
that are accumulated, and a buffer as large as the largest of them, of which the device has one too.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

from weigh.dims import Size
from weigh.dtypes import FLOAT32, FLOAT64, DType
from weigh.errors import UsageError
from weigh.ghost import ops
from weigh.ghost.autograd import queue_callback
from weigh.ghost.host import Host
from weigh.ghost.nn import Parameter
from weigh.ghost.state import no_grad, state
from weigh.ghost.tensor import Tensor, empty
from weigh.optimizers.base import Choice, Optimizer
from weigh.trace.events import COMMUNICATION, GRADIENT, OPTIMIZER_STATE, TEMPORARY, WEIGHT

START_ALIGNMENT = 2
"""Elements to which a partition starts (`nccl_start_alignment_factor`)."""
HOST_STATES = "fp32 weights, gradients and optimizer states of ZeRO-Offload, pinned on the host"
OFFLOADED_OPTIMIZERS = ("adam", "adamw", "adamw_apex")
"""Those that DeepSpeed steps on the host, by its `DeepSpeedCPUAdam`."""


class Zero(Optimizer):
    """`DeepSpeedZeroOptimizer`."""

    clips = True

    def __init__(
        self,
        choice: Choice,
        inner: Optimizer,
        stage: int,
        world: int,
        rank: int,
        accumulation: int = 1,
        reduce_bucket: int = 500_000_000,
        overlap_comm: bool = False,
        offload: bool = False,
    ) -> None:
        super().__init__(choice)
        self.inner, self.stage, self.world, self.rank = inner, stage, world, rank
        self.accumulation, self.reduce_bucket_size = accumulation, reduce_bucket
        self.overlap_comm, self.offload = overlap_comm, offload
        self.micro_step = 0
        self.callback_queued = False
        self.buffers: list[Tensor] = []
        self.index = 0
        self.bucket: list[int] = []
        self.elements = 0
        self.grads_in_partition: Tensor | None = None
        self.all_grad_tensors: list[Tensor] | None = None
        self.averaged_gradients: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.accumulated: dict[int, Tensor] = {}
        """Gradients of several micro-batches, on the host."""
        self.on_host: list[Tensor] = []

    # -- construction
    def own(self, parameters: list[Parameter]) -> None:
        """Flatten the parameters and take this rank's partition of them.

        Raises:
            UsageError: they have several dtypes.
        """
        super().own(parameters)
        self.tensors = [p.tensor for p in parameters]
        if len({t.dtype for t in self.tensors}) > 1:
            raise UsageError("ZeRO flattens parameters of one dtype, and the model has several", where="shard")
        self.dtype = self.tensors[0].dtype
        self.starts: list[int] = []
        numel = 0
        for tensor in self.tensors:
            self.starts.append(numel)
            numel += _int(tensor.numel)
        alignment = START_ALIGNMENT * self.world
        padded = -(-numel // alignment) * alignment
        pad = empty((padded - numel,), self.dtype, "aten::zeros", purpose=TEMPORARY) if padded > numel else None
        self.flat = empty((padded,), self.dtype, "aten::cat", purpose=WEIGHT)
        del pad
        for tensor in self.tensors:
            tensor.storage = self.flat.storage
        self.partition_size = padded // self.world
        first, last = self.rank * self.partition_size, (self.rank + 1) * self.partition_size
        self.mine = [n for n in range(len(self.tensors)) if self.starts[n] < last and self._end(n) > first]
        self._make_master()
        for number, tensor in enumerate(self.tensors):
            tensor.on_accumulated = partial(self.process_gradients, number)

    def _end(self, number: int) -> int:
        return self.starts[number] + _int(self.tensors[number].numel)

    def _make_master(self) -> None:
        size = self.partition_size
        copy = empty((size,), self.dtype, "aten::clone", purpose=OPTIMIZER_STATE)
        if self.offload:
            self._make_master_on_host(size, copy)
            return
        self.master = copy if self.dtype is FLOAT32 else _labelled(ops.to(copy, FLOAT32), OPTIMIZER_STATE)
        del copy
        self.inner.own([Parameter(self.master, ("zero.fp32_partition",), self.parameters[0].module)])
        empty((size,), FLOAT32, "aten::zeros", purpose=TEMPORARY)  # a gradient for the optimizer, dropped at once

    def _make_master_on_host(self, size: int, copy: Tensor) -> None:
        self.host = Host(HOST_STATES)
        with self.host.instead():
            self.master = copy.alias() if self.dtype is FLOAT32 and not self.host.apart else self._zeros(size, FLOAT32)
            self.on_host = [self._zeros(size, self.dtype), self._zeros(max(map(_int, self._numels())), self.dtype)]
            self.inner.own([Parameter(self.master, ("zero.fp32_partition",), self.parameters[0].module)])
            self.master.grad = self._zeros(size, FLOAT32)
        self.temp_grad_buffer = empty(self.on_host[1].shape, self.dtype, "aten::zeros", purpose=COMMUNICATION)

    def _numels(self) -> list[Size]:
        return [t.numel for t in self.tensors]

    def _zeros(self, numel: Size, dtype: DType) -> Tensor:
        return empty((numel,), dtype, "aten::zeros", purpose=OPTIMIZER_STATE)

    # -- the backward pass
    def process_gradients(self, number: int) -> None:
        """`process_gradients`, when the gradient of a parameter has been accumulated."""
        if not self.callback_queued:
            self.callback_queued = True
            queue_callback(self._end_of_backward)
        with no_grad():
            if not self.buffers:
                buffers = 2 if self.overlap_comm else 1
                self.buffers = [self._buffer(self.reduce_bucket_size, COMMUNICATION) for _ in range(buffers)]
                self.index = 0
            if self.stage == 2 or (self.overlap_comm and self._at_boundary()):
                self._into_bucket(number)

    def _at_boundary(self) -> bool:
        return self.micro_step == self.accumulation - 1

    def _buffer(self, numel: int, purpose: str) -> Tensor:
        return empty((numel,), self.dtype, "aten::empty", purpose=purpose)

    def _into_bucket(self, number: int) -> None:
        """`reduce_independent_p_g_buckets_and_remove_grads`."""
        tensor = self.tensors[number]
        numel = _int(tensor.numel)
        if self.elements + numel > self.reduce_bucket_size:
            self._reduce_bucket()
            if self.overlap_comm:
                self.index = 1 - self.index
        if numel <= self.reduce_bucket_size:
            tensor.grad = Tensor(self.buffers[self.index].storage, tensor.shape, None, self.dtype, tensor.numel)
        self.bucket.append(number)
        self.elements += numel

    def _reduce_bucket(self) -> None:
        """`reduce_ipg_grads`."""
        self._average()
        for number in self.bucket:
            tensor = self.tensors[number]
            if number not in self.mine:
                if self.stage == 2:
                    tensor.grad = None
            elif self.offload:
                self._to_host(number)
            else:
                self._copy_into_partition(tensor)
        self.bucket.clear()
        self.elements = 0

    def _average(self) -> None:
        """`average_tensor`: an all-reduce of the pieces that belong to each rank, flattened where they are several."""
        pieces: list[int] = []
        owner = None
        for number in self.bucket:
            at = self.starts[number]
            while at < self._end(number):
                rank = at // self.partition_size
                stop = min(self._end(number), (rank + 1) * self.partition_size)
                if rank == owner:
                    pieces[-1] += stop - at
                else:
                    pieces.append(stop - at)
                owner, at = rank, stop
        together: list[int] = []
        for piece in pieces:
            together.append(piece)
            if sum(together) > self.reduce_bucket_size:
                self._all_reduce(together)
                together = []
        if together:
            self._all_reduce(together)

    def _all_reduce(self, pieces: list[int]) -> None:
        numel = sum(pieces)
        flat = empty((numel,), self.dtype, "aten::cat", purpose=COMMUNICATION) if len(pieces) > 1 else None
        moved = numel * self.dtype.itemsize
        state.ledger.call("c10d::all_reduce", 0, moved, moved)
        del flat

    def _copy_into_partition(self, tensor: Tensor) -> None:
        """`copy_grads_in_partition`: every gradient that reaches into the partition, whole."""
        if self.grads_in_partition is None:
            total = sum(_int(self.tensors[n].numel) for n in self.mine)
            self.grads_in_partition = self._buffer(total, GRADIENT)
        tensor.grad = Tensor(self.grads_in_partition.storage, tensor.shape, None, self.dtype, tensor.numel)

    def _to_host(self, number: int) -> None:
        """`copy_grads_in_partition`: summed there, and in the end as fp32 in its place."""
        if self.stage == 2 and self.accumulation > 1 and number not in self.accumulated:
            with self.host.instead():
                self.accumulated[number] = self._zeros(self.tensors[number].numel, self.dtype)
        if not self._at_boundary():
            return
        piece = self._in_partition(number)
        wide = ops.to(piece, FLOAT64)
        self.norms.append(ops.vector_norm(wide))
        del wide
        ops.to(piece, FLOAT32)  # on its way to the host
        del piece
        self.tensors[number].grad = None

    def _in_partition(self, number: int) -> Tensor:
        """The part of a gradient that lies in this rank's partition."""
        first, last = self.rank * self.partition_size, (self.rank + 1) * self.partition_size
        numel = min(self._end(number), last) - max(self.starts[number], first)
        gradient = self.tensors[number].grad
        assert gradient is not None
        return Tensor(gradient.storage, (numel,), None, self.dtype, numel)

    def _end_of_backward(self) -> None:
        self.callback_queued = False
        boundary = self._at_boundary()
        with no_grad():
            if self.stage == 2 or boundary:
                if self.stage == 1 and not self.overlap_comm:
                    for number, tensor in enumerate(self.tensors):
                        if tensor.grad is not None:
                            self._into_bucket(number)
                self._epilogue(boundary)
        self.micro_step = 0 if boundary else self.micro_step + 1

    def _epilogue(self, boundary: bool) -> None:
        """`independent_gradient_partition_epilogue`."""
        self._reduce_bucket()
        if not self.offload:
            new = [self._in_partition(n) for n in self.mine if self.tensors[n].grad is not None]
            if self.all_grad_tensors is None:
                self.all_grad_tensors = new
            if boundary:
                self.averaged_gradients = self.all_grad_tensors
                held = sum(_int(t.numel) for t in self.averaged_gradients)
                if held < self.partition_size:
                    self.averaged_gradients.append(self._buffer(self.partition_size - held, GRADIENT))
                self.all_grad_tensors = None
            del new
        self.buffers.clear()
        self.grads_in_partition = None
        for tensor in self.tensors:
            tensor.grad = None

    # -- the step
    def prepare(self) -> None:
        with self.host.instead() if self.offload else nullcontext():
            self.inner.prepare()

    def step(self) -> None:
        """Norm, the fp32 gradient, the optimizer's own step, and everyone's new weights."""
        with no_grad():
            if self.offload:
                with self.host.instead():
                    self.inner.step()
                self.elsewhere[HOST_STATES] = self.host.peak()
            else:
                self._norm()
                several = len(self.averaged_gradients) > 1
                flat = self._buffer(self.partition_size, TEMPORARY) if several else self.averaged_gradients[0]
                single = flat if self.dtype is FLOAT32 else ops.to(flat, FLOAT32)
                self.master.grad = single.alias()
                single.storage.relabel(GRADIENT)
                del flat, single
                self.averaged_gradients = []
                self.inner.step()
                self.master.grad = None
            self.norms.clear()
            moved = self.partition_size * self.world * self.dtype.itemsize
            state.ledger.call("c10d::all_gather", 0, moved // self.world, moved)

    def _norm(self) -> None:
        """`get_grad_norm_direct`."""
        norms = []
        for gradient in self.averaged_gradients:
            wide = ops.to(gradient, FLOAT64)
            norms.append(ops.vector_norm(wide))
            del wide
        stacked = ops.stack_scalars(norms, len(norms))
        squares = ops.pow(stacked, 2)
        total = ops.to(ops.sum(squares, (0,)), FLOAT32)
        del squares, stacked
        ops.pow(total, 0.5)


def _int(size: Size) -> int:
    if not isinstance(size, int):
        raise UsageError("ZeRO's buckets are cut by sizes, which must be numbers", where="shard")
    return size


def _labelled(tensor: Tensor, purpose: str) -> Tensor:
    tensor.storage.relabel(purpose)
    return tensor
