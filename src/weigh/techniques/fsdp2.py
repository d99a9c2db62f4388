"""FSDP2: every parameter cut along its first dimension, and put together for as long as its block needs it.

Mirrors `torch/distributed/fsdp/_fully_shard` (2.13): `fully_shard` on every block, then on the model, which keeps what
is left (embedding, last norm, head). The names are upstream's. One rank is run; the others' tensors are as large, but
for the last ranks of dimensions that do not divide.

What decides the memory:

- a group's shards are copied into one flat input, gathered into one flat output and copied out from there into a tensor
  for each parameter: for a moment a block is there twice (`_fsdp_collectives.py`, `foreach_all_gather`);
- in the forward pass the flat output lives on until the next group has copied its own out (`AllGatherState`);
- in the backward pass the next group is gathered before the current one runs (`_backward_prefetch`);
- gradients are copied into one flat input of `reduce_dtype` that lives until the next group reduces
  (`reduce_scatter_states`), and the sharded gradients are views of one flat output (`foreach_reduce`);
- offloaded shards are copied to the device one by one before they are gathered, and their gradients from there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from enum import Enum, auto
from typing import Any

from weigh.dims import Shape, Size, product
from weigh.dtypes import UINT8, DType
from weigh.errors import UsageError, WeighError
from weigh.ghost import nn, ops
from weigh.ghost.autograd import queue_callback
from weigh.ghost.host import Host, host_of
from weigh.ghost.nn import Module
from weigh.ghost.state import inside_unit, no_grad, state
from weigh.ghost.tensor import Storage, Tensor, empty
from weigh.records import dataclass
from weigh.techniques import Technique
from weigh.techniques.hooks import map_tensors, when_gradients_come
from weigh.techniques.placing import Place, managed, places
from weigh.trace.events import COMMUNICATION, GRADIENT, UNSHARDED, WEIGHT, Allocation
from weigh.trace.replay import Streams


@dataclass(frozen=True, slots=True)
class FullyShard(Technique):
    """`fully_shard(block)` for every block and `fully_shard(model)`, as one rank of a mesh sees it."""

    world: int = 8
    """Ranks that share the parameters."""
    replicas: int = 1
    """Groups of such ranks (hybrid sharding): gradients are summed over them too."""
    reshard_after_forward: bool | None = None
    """Free the unsharded parameters after the forward pass; None: all but the model's own."""
    param_dtype: DType | None = None
    """`MixedPrecisionPolicy.param_dtype`: parameters are gathered, and blocks run, in it."""
    reduce_dtype: DType | None = None
    """`MixedPrecisionPolicy.reduce_dtype`: gradients are reduced in it."""
    rank: int = 0
    """Which of the ranks; the first has the largest shards."""
    offload: bool = False
    """`CPUOffloadPolicy`: shards, their gradients and the optimizer are on the host."""
    keep_last: bool = False
    """The last block is not resharded after the forward pass, since it is the first to be needed again (torchtitan)."""

    @property
    def divides(self) -> bool:
        """A rank holds its share of every parameter."""
        return True

    @property
    def materialises(self) -> bool:
        """The shards are all that a rank needs."""
        return True

    @property
    def trailing(self) -> int:
        """The last block is the first to go back, and finds no reduced gradients of another one to drop."""
        return 1

    def apply(self, model: Module) -> None:
        """Shard every block, then the rest.

        Raises:
            WeighError: the model has no blocks.
            UsageError: a rank outside of the world.
        """
        if not 0 <= self.rank < self.world:
            raise UsageError(f"there is no rank {self.rank} of {self.world}", where="rank", hint="Count from 0.")
        blocks = [m for m in model.modules() if m.role == nn.BLOCK]
        if not blocks:
            raise WeighError("FSDP found no blocks to shard", hint="It looks for modules with the role 'block'.")
        context = _Context(self, host_of(model, SHARDS) if self.offload else None)
        if context.host is not None:
            model.updates_on = context.host  # type: ignore[attr-defined]
        held = places(model)
        for module, whole in managed([*blocks, model]):
            with inside_unit(module.unit):
                group = _Group(
                    context, module, [_Param(tensor, held[id(tensor)], self, context.host) for tensor in whole]
                )
                whole.clear()  # they die together, when all have been cut
            context.groups.append(group)
            if self.keep_last and module is blocks[-1]:
                group.reshard_after_forward = False
            module.wrap_in(group.run if module is not model else group.run_root)
        context.groups.insert(0, context.groups.pop())  # upstream lists the root first


class _Param:
    """`FSDPParam`: one parameter, its shard and the storage in which it is put together."""

    __slots__ = ("dtype", "padded", "places", "sharded", "unsharded", "world")

    def __init__(self, tensor: Tensor, places: list[Place], settings: FullyShard, host: Host | None) -> None:
        if not tensor.shape:
            raise WeighError("FSDP2 shards no parameter without dimensions", where=tensor.storage.path)
        self.places = places
        self.world = settings.world
        rows, *rest = tensor.shape
        each = -(-rows // settings.world)
        self.padded: Shape = (each, *rest)
        with host.instead() if host is not None else nullcontext():
            whole = empty(self.padded, tensor.dtype, "aten::new_zeros", purpose=WEIGHT)
        whole.storage.relabel(WEIGHT, tensor.storage.path)
        mine = min(max(rows - settings.rank * each, 0), each)
        self.sharded = whole if mine == each else whole.narrow(0, mine)
        self.sharded.requires_grad = tensor.requires_grad
        self.dtype = settings.param_dtype or tensor.dtype
        self.unsharded: Tensor | None = None
        shape, wanted = tensor.shape, tensor.requires_grad
        self.hold(self.sharded)
        hollow = _hollow(self.padded, self.dtype, settings.world)
        self.unsharded = Tensor(hollow, shape, None, self.dtype, product(shape))
        self.unsharded.requires_grad = wanted

    @property
    def padded_numel(self) -> Size:
        """Elements of a shard, its padding among them."""
        return product(self.padded)

    def hold(self, tensor: Tensor) -> None:
        """Give the modules this tensor as their parameter."""
        for module, attribute in self.places:
            setattr(module, attribute, tensor)

    def to_unsharded(self) -> None:
        """The whole parameter is there."""
        assert self.unsharded is not None
        self.hold(self.unsharded)

    def claim(self) -> None:
        """Room for the whole parameter, padding included."""
        assert self.unsharded is not None
        path = self.sharded.storage.path
        flat = (self.padded_numel * self.world,)
        self.unsharded.storage.claim("fsdp::split_with_sizes_copy", flat, self.dtype, UNSHARDED, path)

    def to_sharded(self) -> None:
        """Only the shard is left."""
        assert self.unsharded is not None
        self.hold(self.sharded)
        self.unsharded.storage.release()


def _hollow(padded: Shape, dtype: DType, world: int) -> Storage:
    """A storage that has no bytes yet."""
    storage = Storage(0, "aten::empty", (), dtype)
    storage.num_bytes = product(padded) * world * dtype.itemsize
    return storage


class _At(Enum):
    IDLE = auto()
    FORWARD = auto()
    PRE_BACKWARD = auto()
    POST_BACKWARD = auto()


class _Context:
    """`FSDPCommContext` and `FSDPStateContext`: what the groups of a model share."""

    def __init__(self, settings: FullyShard, host: Host | None) -> None:
        self.settings, self.host = settings, host
        self.groups: list[_Group] = []
        self.all_gather_state: Tensor | None = None
        self.reduce_scatter_states: list[Tensor] = []
        self.post_forward_order: list[_Group] = []
        self.callback_queued = False

    def root_post_backward(self) -> None:
        """`_root_post_backward_final_callback`: groups that backward did not finish, and the last buffers."""
        first = next((g.unit for g in self.groups if g.at is not _At.POST_BACKWARD and g.unit is not None), None)
        if first is not None:  # its inputs want no gradient, so that the next block's buffer is still there
            with inside_unit(first):
                self.reduce_scatter_states.clear()
        for group in self.groups:
            if group.at is not _At.POST_BACKWARD:
                with inside_unit(group.unit):
                    group.post_backward()
            group.at = _At.IDLE
            group.finalize_backward()
        self.post_forward_order.clear()
        self.reduce_scatter_states.clear()
        self.callback_queued = False


class _Group:
    """`FSDPParamGroup`: the parameters that are gathered, and whose gradients are reduced, together."""

    def __init__(self, context: _Context, module: Module, params: list[_Param]) -> None:
        settings = context.settings
        self.context = context
        self.settings = settings
        self.path = module.path
        self.unit = module.unit
        self.params = params
        self.root = module.role != nn.BLOCK
        self.reshard_after_forward = (
            not self.root if settings.reshard_after_forward is None else settings.reshard_after_forward
        )
        self.at = _At.IDLE
        self.unsharded = False
        self.gathered: Tensor | None = None
        self.post_forward_indices: list[int] = []
        self.all_reduce_state: Tensor | None = None

    # -- around the module's forward
    def run(self, forward: Callable[..., Any], *args: Any) -> Any:
        """`_pre_forward`, the module, `_post_forward`."""
        if self.at is _At.PRE_BACKWARD:  # a checkpoint runs the block again: its parameters are there
            return forward(*self.cast(args))
        self.at = _At.FORWARD
        args = self.cast(args)
        self.unshard()
        self.wait_for_unshard()
        if state.grad_enabled:
            args = when_gradients_come(args, self.post_backward)
        out = forward(*args)
        if self.reshard_after_forward:
            self.reshard()
        self.post_forward_indices.append(len(self.context.post_forward_order))
        self.context.post_forward_order.append(self)
        self.at = _At.IDLE
        return when_gradients_come(out, self.pre_backward) if state.grad_enabled else out

    def run_root(self, forward: Callable[..., Any], *args: Any) -> Any:
        """As `run`; the last flat output of the forward pass dies at its end."""
        out = self.run(forward, *args)
        if state.grad_enabled and out.loss is not None:
            out.loss = when_gradients_come(out.loss, self.pre_backward)
        self.context.all_gather_state = None
        return out

    def cast(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Floating-point inputs in `param_dtype` (`cast_forward_inputs`)."""
        dtype = self.settings.param_dtype
        if dtype is None:
            return args
        return map_tensors(args, lambda t: t.to(dtype) if t.dtype.kind == "float" else t)  # type: ignore[no-any-return]

    # -- gathering
    def unshard(self) -> None:
        """Copy the shards in, gather them (`foreach_all_gather`)."""
        if self.gathered is not None or self.unsharded or not self.params:
            return
        with no_grad():
            flat: Any
            if self.context.host is None:
                flat = self._flat([p for p in self.params if p.dtype is not p.sharded.dtype], "aten::_foreach_copy_")
            else:
                flat = [_on_device(p) for p in self.params]
            self.gathered = self._flat(self.params, "fsdp::all_gather_copy_in", self.settings.world)
            del flat
            assert self.gathered is not None
            _note("c10d::all_gather", self.gathered.num_bytes, self.gathered.num_bytes)

    def _flat(self, params: list[_Param], op: str, world: int = 1) -> Tensor | None:
        """The shards in a row, once for each rank; of different dtypes, as bytes."""
        if not params:
            return None
        dtypes = {p.dtype.name: p.dtype for p in params}
        dtype = params[0].dtype if len(dtypes) == 1 else UINT8
        length: Size = 0
        for param in params:
            length = length + param.padded_numel * (param.dtype.itemsize // dtype.itemsize)
        return empty((length * world,), dtype, op, purpose=COMMUNICATION)

    def wait_for_unshard(self) -> None:
        """Copy what was gathered out, parameter by parameter (`foreach_all_gather_copy_out`)."""
        if self.gathered is None:
            return
        prev_all_gather_state = self.context.all_gather_state  # upstream's variable, which keeps it to the end
        if self.at is _At.FORWARD:
            self.context.all_gather_state = None
        for param in self.params:
            param.claim()
        for param in self.params:
            param.to_unsharded()
        self.unsharded = True
        if self.at is _At.FORWARD:
            self.context.all_gather_state = self.gathered
        self.gathered = None
        del prev_all_gather_state

    def reshard(self) -> None:
        """Free the whole parameters."""
        if self.unsharded:
            for param in self.params:
                param.to_sharded()
            self.unsharded = False

    # -- around the module's backward
    def pre_backward(self) -> None:
        """Gather this group, unless it was prefetched, and begin with the one that is due next."""
        context = self.context
        if not context.callback_queued:
            context.callback_queued = True
            queue_callback(context.root_post_backward)
        if self.at is _At.PRE_BACKWARD:
            return
        self.at = _At.PRE_BACKWARD
        self.unshard()
        self.wait_for_unshard()
        if self.post_forward_indices:
            index = self.post_forward_indices.pop()
            if index > 0:
                context.post_forward_order[index - 1].unshard()

    def post_backward(self) -> None:
        """Free the whole parameters and reduce their gradients (`foreach_reduce`)."""
        context = self.context
        self.at = _At.POST_BACKWARD
        with_gradient: list[_Param] = []
        gradients: list[Tensor] = []
        for param in self.params:
            assert param.unsharded is not None
            if param.unsharded.grad is not None:
                with_gradient.append(param)
                gradients.append(param.unsharded.grad)
                param.unsharded.grad = None
        self.reshard()
        context.reduce_scatter_states.clear()
        if not gradients:
            return
        self.all_reduce_state = None
        self._reduce(with_gradient, gradients)

    def _reduce(self, params: list[_Param], gradients: list[Tensor]) -> None:
        world = self.settings.world
        found = {g.dtype.name: g.dtype for g in gradients}
        if len(found) > 1:
            raise UsageError(
                f"FSDP2 reduces gradients of one dtype, {self.path or 'the model'} has {' and '.join(found)}",
                where="shard",
                hint="Give a param_dtype, or train the block in one dtype.",
            )
        dtype = self.settings.reduce_dtype or gradients[0].dtype
        numel: Size = 0
        for param in params:
            numel = numel + param.padded_numel
        scattered = empty((numel * world,), dtype, "fsdp::chunk_cat", purpose=COMMUNICATION)
        unsharded_grad = gradients[-1]  # upstream's loop variable, which keeps the last one to the end of the function
        gradients.clear()
        reduced = empty((numel,), dtype, "c10d::reduce_scatter", purpose=COMMUNICATION)
        _note("c10d::reduce_scatter", scattered.num_bytes, reduced.num_bytes)
        if self.settings.replicas > 1:
            _note("c10d::all_reduce", reduced.num_bytes, reduced.num_bytes)
            self.all_reduce_state = reduced
        own = params[0].sharded.dtype
        if reduced.dtype is not own:
            reduced = ops.to(reduced, own)
        host = self.context.host
        for param in params:
            shard = param.sharded
            if shard.grad is None and host is not None:
                shard.grad = host.empty(shard.shape, own, GRADIENT)
            elif shard.grad is None:
                shard.grad = Tensor(reduced.storage, shard.shape, None, own, shard.numel)
                reduced.storage.relabel(GRADIENT, shard.storage.path)
        del unsharded_grad
        self.context.reduce_scatter_states.append(scattered)

    def finalize_backward(self) -> None:
        """What outlives the backward pass no more."""
        self.all_reduce_state = None
        self.gathered = None
        self.post_forward_indices.clear()


def _on_device(param: _Param) -> Tensor:
    """`all_gather_inputs`: a shard's copy from the host, in the dtype in which it is gathered."""
    copied = empty((param.padded_numel,), param.sharded.dtype, "aten::_to_copy", purpose=COMMUNICATION)
    return copied if copied.dtype is param.dtype else ops.to(copied, param.dtype)


SHARDS = "shards of FSDP2, their gradients and the optimizer's states, pinned on the host"
COPY_IN_STREAM, REDUCE_SCATTER_STREAM = 1, 2


def stream_of(allocation: Allocation) -> int:
    """The stream on which a storage is made (`_fsdp_collectives.py`: copies in and gathered, or reduced)."""
    if allocation.op == "fsdp::all_gather_copy_in" or (
        allocation.op == "aten::_foreach_copy_" and allocation.purpose == COMMUNICATION
    ):
        return COPY_IN_STREAM
    return REDUCE_SCATTER_STREAM if allocation.op == "c10d::reduce_scatter" else 0


STREAMS = Streams(stream_of)
"""What upstream keeps until an event (`AllGatherState`, `reduce_scatter_states`) says when blocks are free."""


def _note(op: str, read: Size, written: Size) -> None:
    """A collective ran."""
    state.ledger.call(op, 0, read, written)
