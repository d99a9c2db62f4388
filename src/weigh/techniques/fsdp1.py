"""FSDP1: the parameters of every block flattened into one, which is sharded, and put together while the block runs.

Mirrors `torch/distributed/fsdp` (2.13): `FullyShardedDataParallel` around every block and around the model, which keeps
what is left (embedding, last norm, head). The names are upstream's. One rank is run.

What decides the memory (`_flat_param.py`, `_runtime_utils.py`):

- a unit's parameters are views of one flat tensor, so that its gradients are put together into one flat gradient,
  beside which they still live, when the last of them has come (`SplitWithSizesBackward`);
- that gradient is of the whole flat tensor, frozen parameters included;
- the next unit's parameters are gathered before the current one goes back (`BackwardPrefetch.BACKWARD_PRE`), or behind
  it, or when it is due; with `forward_prefetch` the next one of the first pass is gathered in the forward pass too;
- in replicas (`HYBRID_SHARD`, `_HYBRID_SHARD_ZERO2`) the sharded gradient is summed over them where it is;
- with `use_orig_params` the sharded gradient outlives `zero_grad`: it goes when the next forward pass begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from weigh.dims import Shape, Size
from weigh.dtypes import FLOAT32, UINT8, DType
from weigh.errors import NotModelledError, UsageError, WeighError
from weigh.ghost import nn, ops
from weigh.ghost.autograd import queue_callback
from weigh.ghost.ledger import Ledger
from weigh.ghost.nn import Module
from weigh.ghost.state import inside_unit, no_grad, state
from weigh.ghost.tensor import Storage, Tensor, empty
from weigh.records import dataclass
from weigh.techniques import Technique
from weigh.techniques.hooks import map_tensors, when_gradients_come
from weigh.techniques.placing import Place, managed, places
from weigh.trace.events import COMMUNICATION, GRADIENT, TEMPORARY, UNSHARDED, WEIGHT, Allocation
from weigh.trace.peak import phase_peaks
from weigh.trace.replay import Streams

ALIGNMENT = 16
"""Bytes to which parameters are aligned in the flat one, with `use_orig_params` (`_get_aligned_numel`)."""


IN_FLIGHT = 2
"""How many gathered parameters the host lets the device fall behind with (`_limiter_utils.py`, `_FreeEventQueue`)."""

UNSHARD_STREAM, POST_BACKWARD_STREAM, PRE_UNSHARD_STREAM = 1, 2, 3

BROADCAST_BUCKET = 250 << 20
"""Bytes from which `sync_module_states` broadcasts (`_init_utils.py`, `PARAM_BROADCAST_BUCKET_SIZE`)."""
SHARD_OP = "aten::copy_"
"""What makes the shard that is gathered: a cast, or a copy from the host."""


def stream_of(allocation: Allocation) -> int:
    """The stream on which a storage is made (`_runtime_utils.py`, `_init_streams`)."""
    if allocation.op == "c10d::all_gather":
        return UNSHARD_STREAM
    if allocation.op in ("c10d::reduce_scatter", "aten::constant_pad_nd"):
        return POST_BACKWARD_STREAM
    if allocation.op == SHARD_OP and allocation.purpose == COMMUNICATION:
        return PRE_UNSHARD_STREAM
    return 0


STREAMS = Streams(stream_of, {UNSHARD_STREAM: IN_FLIGHT})
"""A gathered parameter is read by the stream that computes: it is there until the host has waited for that."""


@dataclass(frozen=True, slots=True)
class FlatShard(Technique):
    """`FullyShardedDataParallel` around every block and around the model, as one rank sees it."""

    world: int = 8
    """Ranks that share the parameters."""
    param_dtype: DType | None = None
    """`MixedPrecision.param_dtype`: parameters are gathered, and blocks run, in it."""
    reduce_dtype: DType | None = None
    """`MixedPrecision.reduce_dtype`: gradients are reduced in it; None is `param_dtype`."""
    use_orig_params: bool = True
    """The optimizer sees the original parameters, each a piece of the shard."""
    reshard_after_forward: bool = True
    """`FULL_SHARD`; without it, `SHARD_GRAD_OP`."""
    rank: int = 0
    """Which of the ranks."""
    units: tuple[str, ...] = ()
    """Modules that are units of their own besides the blocks, by their names' ends (peft's policy wraps adapters)."""
    fp32_shards: bool = False
    """Shards that are trained are held in fp32, whatever they were loaded in (accelerate's `prepare_model`)."""
    ignored: tuple[str, ...] = ()
    """Modules that stay whole on every rank (`ignored_modules`), by their names' ends."""
    sync_module_states: bool = False
    """Every unit is broadcast from the first rank before it is flattened."""
    offload: bool = False
    """`CPUOffload`: shards, their gradients and the optimizer are on the host."""
    backward_prefetch: str | None = "pre"
    """When the next unit is gathered on the way back: "pre", "post", or None: when it is due."""
    forward_prefetch: bool = False
    """The next unit is gathered while the current one runs forward, from the second pass on."""
    replicas: int = 1
    """Groups of such ranks (hybrid sharding)."""

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
        """The last block is the first to go back, and nothing was reduced before."""
        return 1

    def apply(self, model: Module) -> None:
        """Flatten and shard every unit, then the rest.

        Raises:
            WeighError: the model has no blocks.
            UsageError: a rank outside of the world.
        """
        if not 0 <= self.rank < self.world:
            raise UsageError(f"there is no rank {self.rank} of {self.world}", where="rank", hint="Count from 0.")
        modules = [m for m in model.modules() if m.role == nn.BLOCK]
        if not modules:
            raise WeighError("FSDP found no blocks to wrap", hint="It looks for modules with the role 'block'.")
        context = _Context(self)
        held = places(model)
        left = [m for m in model.modules() if self.ignored and m.path.endswith(self.ignored)]
        for module, whole in managed([*left, *self._inner(model), *modules, model])[len(left) :]:
            if not whole:
                continue
            with inside_unit(whole[0].storage.unit):
                unit = _Unit(context, module, module is model, whole, held)
            context.units.append(unit)
            module.wrap_in(unit.run_root if module is model else unit.run)
        context.sent.clear()
        context.units.insert(0, context.units.pop())
        model.fsdp1 = context  # type: ignore[attr-defined]

    def _inner(self, model: Module) -> list[Module]:
        return [m for m in model.modules() if self.units and m.path.endswith(self.units) and list(m.own_tensors())]


class _Context:
    """What the units of a model share."""

    def __init__(self, settings: FlatShard) -> None:
        self.settings = settings
        self.units: list[_Unit] = []
        self.pre_forward_order: list[_Unit] = []
        """Of the first pass."""
        self.post_forward_order: list[_Unit] = []
        self.callback_queued = False
        self.lazy = True
        self.sync_gradients = True
        """False inside of `no_sync()`: gradients are summed whole, on every rank."""
        self.sent: list[Tensor] = []
        """Copies of parameters that were broadcast."""
        self.host = Ledger()
        """What is offloaded."""
        self.host.repeats.extend(state.ledger.repeats)

    def on_host(self) -> Size:
        """The peak of what is offloaded, in bytes."""
        return max((p.peak for p in phase_peaks(self.host.trace())), default=0)

    def broadcast(self, whole: list[Tensor]) -> None:
        """`_sync_module_params_and_buffers`: copies of several parameters as one; a single one is sent as it is.

        NCCL's stream may read a copy until the next unit's parameters come from the host, which waits for the device:
        no block is free before that.
        """
        self.sent.clear()
        bucket: list[Tensor] = []
        size: Size = 0
        for tensor in whole:
            bucket.append(tensor)
            size = size + tensor.num_bytes
            if tensor is whole[-1] or size >= BROADCAST_BUCKET:
                if len(bucket) > 1:
                    self.sent.append(empty((size,), UINT8, "aten::cat", purpose=COMMUNICATION))
                bucket, size = [], 0

    @contextmanager
    def where_updates_are(self) -> Iterator[None]:
        """The optimizer's memory is the host's while this is entered, where the shards are."""
        device = state.ledger
        if self.settings.offload:
            state.ledger = self.host
        try:
            yield
        finally:
            state.ledger = device

    def initialise(self) -> None:
        """`init_flat_param_attributes`: tensors that are made and freed at once, to be filled later."""
        self.lazy = False
        for unit in self.units:
            unit.initialise()

    def final_callback(self) -> None:
        """`_post_backward_final_callback`: what backward left unsharded, and the gradients in their places."""
        state.ledger.cut()
        for unit in self.units:
            with inside_unit(unit.local_shard.storage.unit):
                unit.reshard(True)
                unit.finalize()
        self.post_forward_order.clear()
        self.callback_queued = False


class _Unit:
    """`FlatParamHandle`: parameters that are gathered and reduced as one."""

    def __init__(
        self, context: _Context, module: Module, root: bool, whole: list[Tensor], held: dict[int, list[Place]]
    ) -> None:
        settings = context.settings
        self.context, self.settings, self.root = context, settings, root
        self.dtype = whole[0].dtype
        self.low = settings.param_dtype or self.dtype
        self.reduce_dtype = settings.reduce_dtype or settings.param_dtype or self.dtype
        self._check(whole)
        self.places = [held[id(t)] for t in whole]
        self.shapes = [t.shape for t in whole]
        self.names = [t.storage.path for t in whole]
        self.wanted = [t.requires_grad for t in whole]
        self.numels, self.is_padding = _aligned(whole, self.low, settings)
        numel: Size = 0
        for size in self.numels:
            numel = numel + size
        self.sharded_numel = -(-numel // settings.world)
        self.local_shard = self._shard(numel, whole)
        whole.clear()
        if settings.fp32_shards and any(self.wanted):
            self.dtype = FLOAT32
            self.local_shard = self._upcast(self.local_shard)
        if settings.offload:
            self.local_shard.storage.move_to(context.host)
        padded = self.sharded_numel * settings.world
        storage = Storage(0, "aten::empty", (), self.low)
        storage.num_bytes = padded * self.low.itemsize
        self.flat = Tensor(storage, (numel,), None, self.low, numel)
        self.flat.requires_grad = any(self.wanted)
        self.flat.on_accumulated = self.post_backward
        self.padded_shape: Shape = (padded,)
        self.views: list[Tensor] = []
        self.unsharded = self.prefetched = False
        self.prepared = False
        """Between its pre-backward hook and its gradient's reduction (`HandleTrainingState.BACKWARD_PRE`)."""
        self.ran_pre_backward_hook = False
        self.needs_pre_backward_unshard = False
        self.pre_forward_index: int | None = None
        self.post_forward_index: int | None = None
        self.saved_grad_shard: Tensor | None = None
        self.flat_grad: Tensor | None = None
        self.hooked: list[Tensor] = []
        self.cpu_grad: Tensor | None = None
        self.sharded_views: list[Tensor] = []
        self._make_sharded_views(module)
        self.hold_sharded()

    def _check(self, whole: list[Tensor]) -> None:
        if any(t.dtype is not self.dtype for t in whole):
            raise UsageError(
                "FSDP1 flattens parameters of one dtype, a unit has several",
                where="shard",
                hint="Wrap the adapters by themselves, or keep them in the model's dtype.",
            )
        if not self.settings.use_orig_params and len({t.requires_grad for t in whole}) > 1:
            raise UsageError(
                "FSDP1 flattens trained or frozen parameters, a unit has both",
                where="use_orig_params",
                hint="Leave out --no-use-orig-params, or wrap the adapters by themselves.",
            )

    def _shard(self, numel: Size, whole: list[Tensor]) -> Tensor:
        """`_move_module_to_device`, `flatten_tensors` and `_get_shard`.

        What is on the host comes to the device; then everything in one tensor, and a copy of this rank's part of it.
        """
        for tensor in whole:
            tensor.storage.move_to(state.ledger)
        if self.settings.sync_module_states:
            self.context.broadcast(whole)
        flat = empty((numel,), self.dtype, "aten::cat", purpose=WEIGHT)
        shard = empty((self.sharded_numel,), self.dtype, "aten::clone", purpose=WEIGHT)
        shard.storage.relabel(WEIGHT, self.names[0])
        del flat
        return shard

    def _upcast(self, shard: Tensor) -> Tensor:
        """`param.data = param.data.to(torch.float32)`."""
        with no_grad():
            upcast = ops.to(shard, FLOAT32)
        upcast.storage.relabel(WEIGHT, self.names[0])
        return upcast

    def initialise(self) -> None:
        """Made and freed at once."""
        unit = self.local_shard.storage.unit
        if self.settings.offload:
            with self.context.where_updates_are(), inside_unit(unit):
                self.cpu_grad = empty((self.sharded_numel,), self.dtype, "aten::zeros", purpose=GRADIENT)
        with inside_unit(unit):
            sizes = [(self.sharded_numel, self.low)] if self.low is not self.dtype else []
            sizes.append((self.sharded_numel * self.settings.world, self.low))
            if self.low is not self.dtype:
                sizes.append((self.sharded_numel * self.settings.world, self.dtype))
            for numel, dtype in sizes:
                empty((numel,), dtype, "aten::empty", purpose=TEMPORARY)

    # -- what the modules hold
    def _make_sharded_views(self, module: Module) -> None:
        shard = self.local_shard
        if not self.settings.use_orig_params:
            shard.requires_grad = any(self.wanted)
            module.flat_param = shard  # type: ignore[attr-defined]
            return
        start: Size = 0
        first, last = self.settings.rank * self.sharded_numel, (self.settings.rank + 1) * self.sharded_numel
        wanted = iter(self.wanted)
        for numel, padding in zip(self.numels, self.is_padding, strict=True):
            stop = start + numel
            if not padding:
                mine = max(min(stop, last) - max(start, first), 0)
                view = Tensor(shard.storage, (mine,), None, self.dtype, mine)
                view.requires_grad = next(wanted)
                self.sharded_views.append(view)
            start = stop

    def hold_sharded(self) -> None:
        """The modules hold this rank's pieces, or nothing that an optimizer would see."""
        hollow = [Tensor(self.flat.storage, shape, None, self.low, 0) for shape in self.shapes]
        self._hold(self.sharded_views or self.views or hollow)

    def _hold(self, tensors: list[Tensor]) -> None:
        for held, tensor in zip(self.places, tensors, strict=True):
            for module, attribute in held:
                setattr(module, attribute, tensor)

    def hold_unsharded(self) -> None:
        """The modules hold views of the flat parameter, made by ops that autograd sees."""
        if not self.prepared:
            parts = ops.split(self.flat, list(self.numels))
            own = [part for part, padding in zip(parts, self.is_padding, strict=True) if not padding]
            self.views = [part.view(*shape) for part, shape in zip(own, self.shapes, strict=True)]
        self._hold(self.views)

    # -- around the module's forward
    def run(self, forward: Callable[..., Any], *args: Any) -> Any:
        """`_pre_forward`, the module, `_post_forward`."""
        if self.prepared:  # a checkpoint runs the block again: its parameters are there
            return forward(*args)
        if not self.prefetched:
            self.unshard()
            self.hold_unsharded()
        self.prefetched = False
        self._prefetch_forward()
        if self.root and self.settings.param_dtype is not None:
            dtype = self.settings.param_dtype
            args = map_tensors(args, lambda t: t.to(dtype) if t.dtype.kind == "float" else t)
        if not self.flat.requires_grad and state.grad_enabled:
            self._hook_reshard(args)
            args = when_gradients_come(args, lambda: self.reshard(True))
        out = forward(*args)
        self.reshard(not self.root and self.settings.reshard_after_forward)
        if not self.post_forward_index:
            self.post_forward_index = len(self.context.post_forward_order)
        self.context.post_forward_order.append(self)
        if not state.grad_enabled:
            return out
        hooked = when_gradients_come(out, self.pre_backward)
        self.needs_pre_backward_unshard = hooked is not out
        self.ran_pre_backward_hook = False
        return hooked

    def _prefetch_forward(self) -> None:
        """`_prefetch_handle` of the forward pass.

        The views are made with it, before the nodes of the unit that runs: on the way back the flat gradient is put
        together behind that unit.
        """
        order = self.context.pre_forward_order
        if self.pre_forward_index is None:
            self.pre_forward_index = len(order)
            order.append(self)
        elif self.settings.forward_prefetch and self.pre_forward_index + 1 < len(order):
            target = order[self.pre_forward_index + 1]
            target.unshard()
            target.hold_unsharded()
            target.prefetched = True

    def _prefetch_backward(self, when: str) -> None:
        """`_prefetch_handle` of the backward pass."""
        if self.post_forward_index and self.settings.backward_prefetch == when:
            target = self.context.post_forward_order[self.post_forward_index - 1]
            if target.needs_pre_backward_unshard:
                target.unshard()

    def _hook_reshard(self, args: tuple[Any, ...]) -> None:
        """`_register_post_backward_reshard_only_hook`: its handle keeps the accumulators of inputs that are leaves.

        A reentrant checkpoint's inputs are, so that a frozen unit's inputs and their gradients live until all of the
        backward pass has run.
        """
        map_tensors(args, lambda t: self.hooked.append(t) if t.requires_grad and t.is_leaf else None)

    def run_root(self, forward: Callable[..., Any], *args: Any) -> Any:
        """As `run`; the first time everything is prepared."""
        if self.context.lazy:
            self.context.initialise()
        state.ledger.cut()
        for unit in self.context.units:
            with inside_unit(unit.local_shard.storage.unit):
                unit.reset_grad()
        out = self.run(forward, *args)
        if state.grad_enabled and out.loss is not None:
            out.loss = when_gradients_come(out.loss, self.pre_backward)
            self.needs_pre_backward_unshard = True
        return out

    # -- gathering
    def unshard(self) -> None:
        """`_unshard`: cast the shard if that is asked for, gather."""
        if self.unsharded:
            return
        with no_grad():
            path = self.local_shard.storage.path
            low = None
            if self.low is not self.dtype or self.settings.offload:
                low = empty((self.sharded_numel,), self.low, SHARD_OP, purpose=COMMUNICATION)
            self.flat.storage.claim("c10d::all_gather", self.padded_shape, self.low, UNSHARDED, path)
            moved = self.flat.storage.num_bytes
            state.ledger.call("c10d::all_gather", 0, moved, moved)
            del low
        self.unsharded = True

    def reshard(self, free: bool) -> None:
        """`_reshard`: free the flat parameter, or keep it for the backward pass that follows."""
        if free and self.unsharded:
            self.flat.storage.release()
            self.unsharded = False
        self.hold_sharded()

    # -- around the module's backward
    def pre_backward(self) -> None:
        """Gather this unit, unless it was prefetched, and begin with the one that is due next."""
        if self.ran_pre_backward_hook:
            return
        context = self.context
        if self.root and not context.callback_queued:
            context.callback_queued = True
            queue_callback(context.final_callback)
        self.prepared = self.ran_pre_backward_hook = True
        self.unshard()
        self.hold_unsharded()
        self.needs_pre_backward_unshard = False
        self._prefetch_backward("pre")
        if self.flat_grad is not None:
            self.saved_grad_shard, self.flat_grad = self.flat_grad, None

    def post_backward(self) -> None:
        """`_post_backward_hook`: free the flat parameter, reduce the flat gradient."""
        gradient = self.flat.grad
        assert gradient is not None
        self.prepared = False
        self.reshard(True)
        self._prefetch_backward("post")
        if not self.context.sync_gradients:
            return
        autograd_computed_grad = gradient
        if gradient.dtype is not self.reduce_dtype:
            gradient = ops.to(gradient, self.reduce_dtype)
        self.flat.grad = None
        padded = gradient
        if gradient.numel != self.sharded_numel * self.settings.world:
            padded = empty(self.padded_shape, gradient.dtype, "aten::constant_pad_nd", purpose=COMMUNICATION)
        reduced = empty((self.sharded_numel,), gradient.dtype, "c10d::reduce_scatter", purpose=COMMUNICATION)
        state.ledger.call("c10d::reduce_scatter", 0, padded.num_bytes, reduced.num_bytes)
        if self.settings.replicas > 1:
            state.ledger.call("c10d::all_reduce", 0, reduced.num_bytes, reduced.num_bytes)
        if reduced.dtype is not self.dtype:
            reduced = ops.to(reduced, self.dtype)
        if self.settings.offload:
            self.saved_grad_shard = self.cpu_grad
        elif self.saved_grad_shard is None:
            self.saved_grad_shard = reduced
            reduced.storage.relabel(GRADIENT, self.local_shard.storage.path)
        del padded, gradient, autograd_computed_grad

    def finalize(self) -> None:
        """`_finalize_params`: the sharded gradient where the optimizer looks for it."""
        self.prepared = self.ran_pre_backward_hook = self.needs_pre_backward_unshard = False
        self.post_forward_index = None
        self.hooked.clear()
        gradient, self.saved_grad_shard = self.saved_grad_shard, None
        if gradient is None:
            return
        if not self.settings.use_orig_params:
            self.local_shard.grad = gradient
            return
        self.flat_grad = gradient
        for view in self.sharded_views:
            if view.requires_grad and view.numel:
                view.grad = Tensor(gradient.storage, view.shape, None, self.dtype, view.numel)

    def reset_grad(self) -> None:
        """`_reset_flat_param_grad_info_if_needed`: `zero_grad` reached the views only."""
        if self.settings.use_orig_params and all(v.grad is None for v in self.sharded_views):
            self.flat_grad = None


def _aligned(whole: list[Tensor], dtype: DType, settings: FlatShard) -> tuple[list[Size], list[bool]]:
    """Sizes of what is flattened, and which of them is padding (`_init_flat_param_and_metadata`)."""
    if not settings.use_orig_params:
        return [t.numel for t in whole], [False] * len(whole)
    step = ALIGNMENT // dtype.itemsize
    numels: list[Size] = []
    is_padding: list[bool] = []
    total = 0

    def add(numel: Any, padding: bool) -> None:
        nonlocal total
        if numel:
            numels.append(numel)
            is_padding.append(padding)
            total += numel

    for tensor in whole:
        if not isinstance(tensor.numel, int):
            raise NotModelledError("FSDP1 with parameters of many sizes at once")
        add(-total % step, True)
        add(tensor.numel, False)
    add(-total % settings.world, True)
    return numels, is_padding
