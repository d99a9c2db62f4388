"""ZeRO stage 3: every parameter divided among the ranks, and put together while a module uses it.

Mirrors DeepSpeed 0.19.6 (`runtime/zero/partition_parameters.py`, `partitioned_param_coordinator.py`,
`parameter_offload.py`, `linear.py`), for a model made under `zero.Init`, as transformers makes it. One rank is run;
what becomes of gradients, and the update, is `optimizers/zero3.py`. The names are upstream's. What decides the memory:

- each module with parameters of its own fetches them before its forward and its backward pass, and lets go of them
  behind. Several at once come as one tensor, from which each is copied; a single one is where it was gathered;
- the first pass is recorded. From then on the parameters that come next are fetched ahead (`prefetch_bucket_size`
  elements, where `max_live_parameters` leaves room), and those that come again soon stay (`max_reuse_distance`);
- small parameters stay once they are there (`persistence_threshold`);
- a linear layer saves its input, whether its weight is trained or not (`LinearFunctionForZeroStage3`).

- in groups (ZeRO++'s hierarchical partitions) a second, larger partition is kept from the time when a parameter is let
  go of to the update, and gathered from instead;
- with `offload` partitions are on the host, and are copied to the device to be gathered.

Left out: ZeRO++'s quantized weights and gradients, parameters on NVMe, leaf modules, the streams of the
collectives.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

from weigh.dims import Size
from weigh.errors import NotModelledError, UsageError
from weigh.ghost import nn, ops
from weigh.ghost.host import Host, host_of
from weigh.ghost.nn import Module, Parameter
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.state import no_grad, state
from weigh.ghost.tensor import Tensor, empty
from weigh.records import dataclass
from weigh.techniques import Technique
from weigh.techniques.hooks import when_gradients_come
from weigh.trace.events import COMMUNICATION, UNSHARDED, WEIGHT

NEVER = -(10**10)
PARTITIONS = "partitions of ZeRO stage 3's parameters, pinned on the host"


@dataclass(frozen=True, slots=True)
class PartitionedParameters(Technique):
    """`DeepSpeedZeRoOffload`: hooks around every module that has parameters, as one rank sees them."""

    world: int = 8
    """Ranks that share the parameters."""
    rank: int = 0
    """Which of the ranks."""
    prefetch_bucket_size: int = 50_000_000
    """Elements that are fetched ahead at once."""
    persistence_threshold: int = 100_000
    """Elements up to which a parameter stays whole."""
    max_live_parameters: int = 1_000_000_000
    """Elements that are whole at once, beyond which nothing is fetched ahead."""
    max_reuse_distance: int = 1_000_000_000
    """Elements: a parameter that is used again before so many others stays."""

    group: int = 1
    """Ranks of a machine that share a second partition (ZeRO++, `zero_hpz_partition_size`); 1: there is none."""
    offload: bool = False
    """Partitions are on the host (`offload_param`), and come to the device to be gathered."""

    @property
    def materialises(self) -> bool:
        """A parameter is divided as soon as it is made."""
        return True

    @property
    def divides(self) -> bool:
        """Each rank has its part."""
        return True

    @property
    def uneven(self) -> bool:
        """What is fetched ahead ends wherever a bucket is full, whatever the block."""
        return True

    def apply(self, model: Module) -> None:
        """Divide every parameter, and put the hooks around the modules.

        Raises:
            UsageError: a rank outside of the world.
        """
        if not 0 <= self.rank < self.world:
            raise UsageError(f"there is no rank {self.rank} of {self.world}", where="rank", hint="Count from 0.")
        coordinator = Coordinator(self, host_of(model, PARTITIONS) if self.offload else None)
        whole = model.parameters()
        for module in model.modules():
            own = [t for _, t in module.own_tensors() if t.storage.purpose == WEIGHT or id(t) in coordinator.params]
            if not own:
                continue
            for tensor in own:
                coordinator.take(tensor)
            if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
                module.forward = partial(_linear, module)  # type: ignore[method-assign]
            hooks = _Hooks(coordinator, [coordinator.params[id(t)] for t in own])
            module.zero3 = coordinator  # type: ignore[attr-defined]
            module.wrap_in(hooks.run)
        for parameter in whole:
            found = coordinator.params[id(parameter.tensor)]
            coordinator.held.append(Parameter(found.partition, parameter.place, parameter.module))
            coordinator.of_partition[id(found.partition)] = found
        model.wrap_in(coordinator.around)
        model.zero3 = coordinator  # type: ignore[attr-defined]


class Partitioned:
    """A parameter with `ds_id`, `ds_numel`, `ds_tensor` and the like."""

    def __init__(self, number: int, tensor: Tensor, settings: PartitionedParameters, host: Host | None) -> None:
        if not isinstance(tensor.numel, int):
            raise NotModelledError("ZeRO stage 3 with parameters of many sizes at once")
        self.number, self.tensor, self.numel = number, tensor, tensor.numel
        self.path = tensor.storage.path
        self.partition_numel = -(-self.numel // settings.world)
        self.world = settings.world
        self.persists = self.numel <= settings.persistence_threshold
        self.available = False
        self.in_flight: _Handle | None = None
        self.active: set[int] = set()
        """The modules that use it just now."""
        tensor.storage.move_to(state.ledger)
        self.host = host
        self.group = settings.group
        self.secondary: Tensor | None = None
        self.keep_secondary()
        with host.instead() if host is not None and not self.persists else nullcontext():
            self.partition = empty((self.partition_numel,), tensor.dtype, "aten::empty", purpose=WEIGHT)
        self.partition.storage.relabel(WEIGHT, self.path)
        self.partition.requires_grad = tensor.requires_grad
        tensor.storage.release()
        self.hold_partition()

    def keep_secondary(self) -> None:
        """`_partition_param_sec`."""
        if self.group == 1 or self.secondary is not None:
            return
        numel = self.partition_numel * self.world // self.group
        with self.host.instead() if self.host is not None else nullcontext():
            self.secondary = empty((numel,), self.tensor.dtype, "aten::empty", purpose=WEIGHT)
        self.secondary.storage.relabel(WEIGHT, self.path)

    def hold_partition(self) -> None:
        """Of a single rank a partition is all there is (`NoGatherHandle`)."""
        if self.world == 1 and not self.is_away:
            self.tensor.storage = self.partition.storage

    @property
    def is_away(self) -> bool:
        """The partition is on the host, and the host's memory is another."""
        return self.host is not None and self.host.apart and self.partition.storage.ledger is not state.ledger

    def partition_on_device(self) -> Tensor | None:
        """`ds_tensor.to(device)`: a copy, where the partition is on the host."""
        if not self.is_away:
            return None
        kept = self.partition if self.secondary is None else self.secondary
        return empty(kept.shape, self.tensor.dtype, "aten::_to_copy", purpose=COMMUNICATION)

    def claim(self, op: str, numel: Size) -> None:
        """Room for all of it."""
        self.tensor.storage.num_bytes = numel * self.tensor.dtype.itemsize
        self.tensor.storage.claim(op, (numel,), self.tensor.dtype, UNSHARDED, self.path)


class _Handle:
    """`AllGatherCoalescedHandle`, or that of a single parameter: what is in flight."""

    def __init__(self, params: list[Partitioned]) -> None:
        self.params = params
        self.flat: Tensor | None = None
        self.complete = False
        for param in params:
            param.in_flight = self
        if params[0].world == 1:
            for param in params:
                if param.is_away:
                    param.claim("aten::_to_copy", param.numel)
            return
        padded = sum(p.partition_numel * p.world for p in params)
        moved = padded * params[0].tensor.dtype.itemsize
        if len(params) == 1:
            params[0].claim("c10d::all_gather", padded)
        else:
            self.flat = empty((padded,), params[0].tensor.dtype, "c10d::all_gather", purpose=COMMUNICATION)
        copies = [p.partition_on_device() for p in params]
        del copies
        state.ledger.call("c10d::all_gather", 0, moved // params[0].world, moved)

    def wait(self) -> None:
        """Every parameter of a coalesced gather is copied out of it with the first; it stays until the last is used."""
        if not self.complete and self.flat is not None:
            for param in self.params:
                param.claim("aten::cat", param.numel)
        for param in self.params if not self.complete else ():
            param.available = True
        self.complete = True


class Coordinator:
    """`PartitionedParameterCoordinator`."""

    def __init__(self, settings: PartitionedParameters, host: Host | None) -> None:
        self.settings, self.host = settings, host
        self.params: dict[int, Partitioned] = {}
        self.held: list[Parameter] = []
        """The partitions in the places of the parameters."""
        self.of_partition: dict[int, Partitioned] = {}
        self.recording = self.traced = False
        self.submodule_order: list[_Hooks] = []
        self.param_order: list[tuple[Partitioned, int]] = []
        self.param_queue: deque[tuple[Partitioned, int]] = deque()
        self.fetched_for: dict[int, int] = {}
        self.step_id = self.n_available = 0
        self.in_backward: list[_Hooks] = []

    def take(self, tensor: Tensor) -> None:
        """Divide a parameter, once."""
        if id(tensor) not in self.params:
            self.params[id(tensor)] = Partitioned(len(self.params), tensor, self.settings, self.host)

    def around(self, forward: Callable[..., Any], *args: Any) -> Any:
        """`_start_of_forward_hook`, then the model."""
        self.reset_step()
        return forward(*args)

    def reset_step(self) -> None:
        """What was recorded becomes the order in which parameters come."""
        if self.recording:
            self.param_order = [
                (param, step) for step, hooks in enumerate(self.submodule_order) for param in hooks.params
            ]
            self.recording, self.traced = False, True
        elif not self.traced:
            self.recording = True
        self.param_queue = deque(self.param_order)
        self.fetched_for = {}
        self.step_id = self.n_available = 0

    def fetch_sub_module(self, hooks: _Hooks, forward: bool) -> None:
        """What a module needs, and ahead of time what comes next."""
        if self.recording:
            self.submodule_order.append(hooks)
        if not forward:
            self.in_backward.append(hooks)
        with no_grad():
            self.all_gather([p for p in hooks.params if not p.available and p.in_flight is None])
            for param in hooks.params:
                param.active.add(id(hooks))
                if param.in_flight is not None:
                    handle, param.in_flight = param.in_flight, None
                    handle.wait()
                    del handle
            if self.traced:
                self._take_off_queue(hooks)
                self._prefetch()
        self.step_id += 1

    def _take_off_queue(self, hooks: _Hooks) -> None:
        wanted = sum(self.fetched_for.get(p.number, NEVER) < self.step_id for p in hooks.params)
        for _ in range(min(wanted, len(self.param_queue))):
            param, step = self.param_queue.popleft()
            self.fetched_for[param.number] = step

    def _prefetch(self) -> None:
        settings = self.settings
        room = min(settings.max_live_parameters - self.n_available, settings.prefetch_bucket_size)
        ahead: list[Partitioned] = []
        numel = 0
        while self.param_queue and numel < room:
            param, step = self.param_queue.popleft()
            self.fetched_for[param.number] = max(self.fetched_for.get(param.number, NEVER), step)
            if not param.available and param.in_flight is None and param not in ahead:
                ahead.append(param)
                numel += param.numel
        self.all_gather(ahead)

    def all_gather(self, params: list[Partitioned]) -> None:
        """`__all_gather_params`: by dtype and partition, together."""
        alike: dict[tuple[bool, str], list[Partitioned]] = {}
        for param in sorted(params, key=lambda p: (p.secondary is None, p.number)):
            self.n_available += param.numel
            alike.setdefault((param.secondary is None, param.tensor.dtype.name), []).append(param)
        for together in alike.values():
            _Handle(together)

    def release_sub_module(self, hooks: _Hooks, forward: bool) -> None:
        """What a module used, but for what stays."""
        released = self._params_to_release(hooks)
        if not forward and hooks in self.in_backward:
            self.in_backward.remove(hooks)
        for param in hooks.params:
            param.active.discard(id(hooks))
            if param in released:
                self.release(param)

    def _params_to_release(self, hooks: _Hooks) -> list[Partitioned]:
        if not self.traced:
            return hooks.params
        found = [p for p in hooks.params if not p.persists and self.fetched_for.get(p.number, NEVER) <= self.step_id]
        traversed = 0
        for later in self.submodule_order[self.step_id :]:
            if traversed >= self.settings.max_reuse_distance or not found:
                break
            found = [p for p in found if p not in later.params]
            traversed += sum(p.numel for p in later.params)
        return found

    def release(self, param: Partitioned) -> None:
        """`partition()`: the whole is dropped, unless a module uses it."""
        if param.available and not param.active:
            param.keep_secondary()
            if param.world > 1 or param.is_away:
                param.tensor.storage.release()
            param.available = False
            self.n_available -= param.numel

    def release_all(self) -> None:
        """`release_and_reset_all`."""
        self.in_backward.clear()
        for param in self.params.values():
            if param.in_flight is not None:
                handle, param.in_flight = param.in_flight, None
                handle.wait()
                del handle
            param.active.clear()
            self.release(param)

    def release_leftovers(self) -> None:
        """`release_backward_leftovers`: of modules whose inputs want no gradient."""
        while self.in_backward:
            hooks = self.in_backward.pop()
            for param in hooks.params:
                param.active.discard(id(hooks))
                if not param.persists:
                    self.release(param)

    def invalidate_secondary(self) -> None:
        """After an update: second partitions of what was trained are out of date."""
        for param in self.of_partition.values():
            if param.tensor.requires_grad:
                param.secondary = None

    def gather_persistent(self) -> None:
        """After an update: the small ones, together."""
        small = [p for p in self.params.values() if p.persists]
        self.all_gather(small)
        for param in small:
            if param.in_flight is not None:
                param.in_flight.wait()
                param.in_flight = None


class _Hooks:
    """The hooks of one module."""

    def __init__(self, coordinator: Coordinator, params: list[Partitioned]) -> None:
        self.coordinator = coordinator
        self.params = sorted(dict.fromkeys(params), key=lambda p: p.number)

    def run(self, forward: Callable[..., Any], *args: Any) -> Any:
        """`_pre_forward_module_hook`, the module, `_post_forward_module_hook`; and both again on the way back."""
        coordinator = self.coordinator
        if state.grad_enabled:
            args = when_gradients_come(args, lambda: coordinator.release_sub_module(self, False))
        coordinator.fetch_sub_module(self, True)
        out = forward(*args)
        coordinator.release_sub_module(self, True)
        if not state.grad_enabled:
            return out
        return when_gradients_come(out, lambda: coordinator.fetch_sub_module(self, False))


class LinearFunctionForZeroStage3(Op):
    """A linear layer that saves its input and its weight, the one that is put together again for the way back."""

    name = "LinearFunctionForZeroStage3"
    source = "deepspeed/runtime/zero/linear.py, class LinearFunctionForZeroStage3"
    view = True
    """Its product notes what it costs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if ctx:
            ctx.save(x, weight, bias)
        with no_grad():
            return ops.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> list[Any]:
        x, weight, _ = ctx.unpack()
        with no_grad():
            grad_input = grad.matmul(weight) if ctx.needs[0] else None
            grad_weight = None
            if ctx.needs[1]:
                rows = grad.reshape(-1, grad.shape[-1])
                grad_weight = rows.transpose(0, 1).matmul(x.reshape(-1, x.shape[-1]))
            grad_bias = ops.sum(grad, tuple(range(len(grad.shape) - 1))) if ctx.needs[2] else None
        return [grad_input, grad_weight, grad_bias]


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    return apply(LinearFunctionForZeroStage3, x, module.weight, module.bias)  # type: ignore[no-any-return]
