"""Megatron-FSDP: gradients, parameters and states of each layer in buffers that ranks share.

Mirrors `megatron/core/distributed/fsdp/src/megatron_fsdp` (0.17, version 1). What decides the memory:

- parameters of a layer are a bucket (experts one of their own), all others make one more; each tensor starts at a
  multiple of the longest row of the bucket, and the bucket ends at a multiple of that for every rank
  (`build_data_parallel_buffer_index`);
- "optim" shares main parameters and moments, "optim_grads" gradients too, "optim_grads_params" the parameters as well;
- shared gradients are made whole, bucket by bucket, and buckets are kept until a billion elements wait
  (`suggested_RS_queue_capacity`) or the backward pass ends;
- shared parameters are gathered before a layer runs, with as many of the layers after it (in the backward pass before
  it) as make half a billion elements, and dropped when it has run; those outside of layers stay for the step;
- the moments are there before the first step: reading a checkpoint, even none, makes them.

Left out: double buffers, user buffers, hybrid sharding, pipeline stages.
"""

from __future__ import annotations

from collections.abc import Callable
from math import lcm, prod
from typing import Any

from weigh.dtypes import DType
from weigh.ghost.autograd import queue_callback
from weigh.ghost.ledger import NotSteady
from weigh.ghost.nn import Module, Parameter
from weigh.ghost.state import state
from weigh.ghost.tensor import Storage, Tensor, empty
from weigh.records import dataclass
from weigh.runtimes.mcore.buffers import Drop, Layout, beside
from weigh.runtimes.mcore.model import GPTStage
from weigh.techniques.hooks import when_gradients_come
from weigh.trace.events import COMMUNICATION, GRADIENT, UNSHARDED, WEIGHT

STRATEGIES = ("optim", "optim_grads", "optim_grads_params")
"""`--data-parallel-sharding-strategy`."""
QUEUE = 1_000_000_000
"""Elements of gradients that may wait to be reduced; half as many are gathered ahead."""


@dataclass(frozen=True, slots=True)
class Group:
    """Ranks that share a bucket, and which of them this one is."""

    ranks: int
    rank: int


def fully_shard(
    stage: GPTStage, strategy: str, dense: Group, experts: Group, is_expert: Callable[[Parameter], bool], grads: DType
) -> Sharing:
    """Put a model's parameters into buckets, and what gathers and reduces them around its layers.

    Raises:
        NotSteady: layers stand for others; gathering ahead reaches across them.
    """
    if not state.unrolled:
        raise NotSteady("Megatron-FSDP gathers layers ahead")
    layers, sharing = list(stage.decoder), Sharing(stage.parameters())
    inside = {id(p.tensor): layer for layer in layers for p in layer.parameters()}
    units: dict[tuple[int, bool], list[Parameter]] = {}
    for parameter in sharing.held:
        layer = inside.get(id(parameter.tensor))
        units.setdefault((id(layer) if layer is not None else 0, is_expert(parameter)), []).append(parameter)
    for (unit, expert), parameters in units.items():
        bucket = Bucket(parameters, experts if expert else dense, strategy, grads)
        sharing.buckets.append(bucket)
        sharing.units.setdefault(unit, []).append(bucket)
        for parameter in parameters:
            parameter.tensor.on_accumulated = _Reduce(parameter.tensor, bucket, sharing)
    sharing.grad_data = empty((sum(b.grad_numel for b in sharing.buckets),), grads, "aten::empty", purpose=GRADIENT)
    sharing.grad_data.storage.relabel(GRADIENT, "grad_data")
    if strategy == "optim_grads_params":
        for layer in layers:
            layer.wrap_in(sharing.around(layer))
    stage.wrap_in(sharing.run_root)
    return sharing


class Bucket:
    """`ParameterGroup`: parameters in one buffer, whole or this rank's share of it, and what stands beside them."""

    def __init__(self, parameters: list[Parameter], group: Group, strategy: str, grads: DType) -> None:
        shapes: list[tuple[int, ...]] = [p.tensor.shape for p in parameters]  # type: ignore[misc]
        starts, numel = bucket_layout(shapes, group.ranks)
        self.numel, self.grads = numel, grads
        self.share = numel // group.ranks
        low = group.rank * self.share
        self.layout = Layout(
            numel,
            tuple(
                part
                for start, shape in zip(starts, shapes, strict=True)
                if (part := min(start + prod(shape), low + self.share) - max(start, low)) > 0
            ),
        )
        self.shares_gradients = strategy != "optim" and group.ranks > 1
        self.shares_parameters = strategy == "optim_grads_params" and group.ranks > 1
        self.grad_numel = self.share if self.shares_gradients else numel
        dtype = parameters[0].tensor.dtype
        self.dtype = dtype
        held = self.share if self.shares_parameters else numel
        self.param_data = empty((held,), dtype, "aten::empty", purpose=WEIGHT)
        self.param_data.storage.relabel(WEIGHT, "param_data")
        self.whole = _hollow(numel, dtype) if self.shares_parameters else self.param_data.storage
        self.gradients = _hollow(numel, grads)
        for parameter in parameters:
            parameter.tensor.storage = self.whole
        self.waiting: set[int] = set()
        self.parameters = {id(p.tensor) for p in parameters}

    def beside(self, name: str, purpose: str) -> list[Tensor]:
        """fp32 tensors beside this rank's share: main parameters in one buffer, moments for each parameter."""
        if name != "main_params":
            return beside(self.layout.shares, name, purpose)
        return beside((self.share,), name, purpose)

    def gather(self) -> None:
        """Room for the whole bucket."""
        if self.shares_parameters and not self.whole.number:
            self.whole.claim("c10d::all_gather", (self.numel,), self.dtype, UNSHARDED, "bucket")
            state.ledger.call("c10d::all_gather", 0, self.share * self.dtype.itemsize, self.numel * self.dtype.itemsize)

    def drop(self) -> None:
        """Only the share is left."""
        if self.shares_parameters:
            self.whole.release()


def _hollow(numel: int, dtype: DType) -> Storage:
    """A storage that has no bytes yet."""
    storage = Storage(0, "aten::empty", (), dtype)
    storage.num_bytes = numel * dtype.itemsize
    return storage


def bucket_layout(shapes: list[tuple[int, ...]], ranks: int) -> tuple[list[int], int]:
    """Where each tensor of a bucket starts, in the order given, and the elements of the bucket with its padding.

    >>> bucket_layout([(8,), (6, 8), (8, 4)], 2)
    ([80, 0, 48], 96)
    """
    order = sorted(range(len(shapes)), key=lambda i: -prod(shapes[i][1:]))
    grid = _grid([shapes[i] for i in order])
    sizes = {i: prod(shapes[i]) for i in order}
    fragments = [i for i in order if sizes[i] < grid]
    regular = [i for i in order if sizes[i] >= grid]
    starts, at = [0] * len(shapes), 0
    while regular:
        item = regular.pop(0)
        starts[item] = at
        rest = sizes[item] % grid
        if not rest:
            at += sizes[item]
            continue
        gap, space = at + sizes[item], grid - rest
        at += (sizes[item] // grid + 1) * grid
        for other in regular:  # one whose own rest fits into the same cell of the grid
            if sizes[other] % grid and rest + sizes[other] % grid <= grid:
                regular.remove(other)
                starts[other] = at - sizes[other] % grid
                space -= sizes[other] % grid
                at += sizes[other] // grid * grid
                break
        for small in list(fragments):
            if sizes[small] <= space:
                fragments.remove(small)
                starts[small], gap, space = gap, gap + sizes[small], space - sizes[small]
    for small in fragments:
        starts[small] = at
        at += sizes[small]
    return starts, -(-at // (ranks * grid)) * ranks * grid


def _grid(shapes: list[tuple[int, ...]]) -> int:
    """`chunk_size_factor`: no rank's share begins inside a row; `shapes` begin with the longest row."""
    grid = prod(shapes[0][1:])
    for shape in shapes:
        row, numel = prod(shape[1:]), prod(shape)
        if not (row == grid or (grid % row == 0 and numel % grid == 0) or numel < grid):
            grid = lcm(grid, row)
    return grid


class _Reduce(Drop):
    """`_process_post_backward_gradients`: a gradient goes into its bucket, and a full bucket is reduced."""

    def __init__(self, tensor: Tensor, bucket: Bucket, sharing: Sharing) -> None:
        super().__init__(tensor, bucket)
        self.bucket, self.sharing = bucket, sharing

    def __call__(self) -> None:
        tensor, bucket = self.tensor(), self.bucket
        assert tensor is not None
        if bucket.shares_gradients:
            bucket.gradients.claim("main_grad bucket", (bucket.numel,), bucket.grads, COMMUNICATION, "bucket")
        tensor.grad = None
        bucket.waiting.add(id(tensor))
        if bucket.shares_gradients and bucket.waiting == bucket.parameters:
            self.sharing.reduce(bucket)


class Sharing:
    """`AllGatherPipeline` and `GradReducePipeline`: which buckets are whole, and which wait to be reduced."""

    def __init__(self, held: list[Parameter]) -> None:
        self.held = held
        self.buckets: list[Bucket] = []
        self.units: dict[int, list[Bucket]] = {}
        """By layer; 0 is what is outside of layers."""
        self.queue: list[Bucket] = []
        self.grad_data: Tensor | None = None
        self.capacity = QUEUE
        self.backward = False

    def around(self, layer: Module) -> Callable[..., Any]:
        """What runs around a layer."""
        own = self.units[id(layer)]

        def run(forward: Callable[..., Any], *args: Any) -> Any:
            again = self.backward  # a checkpoint runs it again
            self.gather(own, 0 if again else 1)
            if state.grad_enabled:
                args = when_gradients_come(args, lambda: self._drop(own))
            out = forward(*args)
            if not again:
                self._drop(own)
            return when_gradients_come(out, lambda: self.gather(own, -1)) if state.grad_enabled else out

        return run

    def run_root(self, forward: Callable[..., Any], *args: Any) -> Any:
        """Around the model: what is outside of its layers is gathered, and stays."""
        self.gather(self.units[0], 1)
        out = forward(*args)
        return when_gradients_come(out, self._root_pre_backward) if state.grad_enabled else out

    def gather(self, own: list[Bucket], direction: int) -> None:
        """These buckets, and of those that follow in this direction as many as half of the queue has elements."""
        places = [self.buckets.index(b) for b in own]
        for bucket in own:
            bucket.gather()
        ahead, at = 0, max(places) if direction > 0 else min(places)
        while direction and ahead < self.capacity // 2 and 0 <= (at := at + direction) < len(self.buckets):
            self.buckets[at].gather()
            ahead += self.buckets[at].numel

    @staticmethod
    def _drop(buckets: list[Bucket]) -> None:
        for bucket in buckets:
            bucket.drop()

    def _root_pre_backward(self) -> None:
        if not self.backward:
            self.backward = True
            queue_callback(self._root_post_backward)

    def _root_post_backward(self) -> None:
        for bucket in self.buckets:
            bucket.gradients.release()
            bucket.waiting.clear()
        self.queue.clear()
        self.backward = False

    def reduce(self, bucket: Bucket) -> None:
        """Let go of those that have waited longest where too many do; this one waits."""
        while self.queue and sum(b.numel for b in self.queue) > self.capacity:
            first = self.queue.pop(0)
            first.gradients.release()
            first.waiting.clear()
        self.queue.append(bucket)
        written = bucket.share * bucket.grads.itemsize
        state.ledger.call("c10d::reduce_scatter", 0, bucket.numel * bucket.grads.itemsize, written)

    def finish(self) -> None:
        """`finish_grad_sync`: nothing is whole while the optimizer runs."""
        self._drop(self.buckets)
