"""`torch.compile` of a model, or of each of its blocks.

The function that is compiled is traced once on ghost tensors beside the device (`tracing`), with its backward pass, and
decomposed (`decompositions`); AOTAutograd's partitioner says what is kept (`partition`), TorchInductor what is written
when (`lowering`). What runs instead is one operation, whose forward and backward passes allocate and free the buffers
of those kernels. Modelled: which tensors are kept is compared with the real partitioner; when temporaries live is not.

Left out: graph breaks, CUDA graphs (`mode="reduce-overhead"`), and what autotuning allocates (`mode="max-autotune"`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from weigh.dims import product
from weigh.errors import NotModelledError, WeighError
from weigh.ghost import nn
from weigh.ghost.nn import Module
from weigh.ghost.ops.table import Op, apply
from weigh.ghost.state import state
from weigh.ghost.tensor import Tensor, empty
from weigh.techniques import Technique
from weigh.techniques.compiling.graph import Node
from weigh.techniques.compiling.lowering import Kernel, base, lower
from weigh.techniques.compiling.partition import Joint, closure, kept
from weigh.techniques.compiling.tracing import trace


@dataclass(frozen=True, slots=True)
class Compiled(Technique):
    """Compile the model, or every block of it."""

    blocks: bool = False
    """Each block is compiled for itself."""

    @property
    def uneven(self) -> bool:
        """One function runs all blocks."""
        return not self.blocks

    def apply(self, model: Module) -> None:
        """Wrap it.

        Raises:
            WeighError: the model has no blocks.
        """
        targets = [model] if not self.blocks else [m for m in model.modules() if m.role == nn.BLOCK]
        if not targets:
            raise WeighError("compile found no blocks", hint="It looks for modules with the role 'block'.")
        for module in targets:
            module.wrap_in(_Function(module))


class Region:
    """What one call of a compiled function does to memory."""

    def __init__(self, joint: Joint) -> None:
        saved = kept(joint) if joint.tangents else []
        self.saved = list(dict.fromkeys(base(n) for n in saved))
        self.inputs = joint.inputs
        self.outputs = joint.outputs
        self.tangents = joint.tangents
        self.gradients = joint.gradients
        inputs = frozenset(joint.inputs)
        needed = closure([*joint.outputs, *saved])
        order = [n for n in joint.graph.nodes if n in needed]
        self.forward = lower(order, inputs, [*joint.outputs, *self.saved], ())
        returned = [g for g in joint.gradients if g is not None]
        mortal = [n for n in self.saved if n not in inputs]
        given = {*saved, *self.saved, *joint.tangents}
        self.backward = lower(_backward_order(joint, given), given, returned, mortal)

    @property
    def bytes_saved(self) -> int:
        """Of what is kept besides the inputs."""
        return sum(n.num_bytes for n in self.saved if n.op != "input")


def _backward_order(joint: Joint, given: set[Node]) -> list[Node]:
    """`reordering_to_mimic_autograd_engine`: what is made again stands before what first reads it."""
    needed: set[Node] = set()
    stack = [g for g in joint.gradients if g is not None]
    while stack:
        node = stack.pop()
        if node not in needed and node not in given:
            needed.add(node)
            stack.extend(node.inputs)
    follows = set(joint.tangents)
    for node in joint.graph.nodes:
        if any(i in follows for i in node.inputs):
            follows.add(node)
    order: dict[Node, None] = {}
    for node in joint.graph.nodes:
        if node in needed and node in follows:
            before = [node]
            while before:
                current = before[-1]
                missing = [i for i in current.inputs if i in needed and i not in order]
                if missing:
                    before.extend(sorted(missing, key=lambda n: -n.number))
                else:
                    order[before.pop()] = None
    for node in joint.graph.nodes:  # gradients that no tangent reaches
        if node in needed:
            order.setdefault(node)
    return list(order)


class CompiledFunction(Op):
    """A call of compiled code: AOTAutograd's `CompiledFunction`."""

    name = "CompiledFunction"
    source = "torch/_functorch/_aot_autograd/runtime_wrappers.py"
    view = True  # its kernels note what they cost themselves
    differentiable = 1 << 30

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor, region: Region) -> list[Tensor]:
        made: dict[Node, Tensor] = dict(zip(region.inputs, tensors, strict=True))
        _launch(region.forward, made)
        outputs = [_seen(made[base(n)], n) for n in region.outputs]
        if ctx:
            ctx.meta = region
            ctx.save(*(made[n].alias() for n in region.saved))
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> list[Any]:
        region: Region = ctx.meta
        made: dict[Node, Tensor] = dict(zip(region.saved, ctx.unpack(), strict=True))
        ctx.saved = []
        came = [g for g in gradients if g is not None]
        made.update(zip(region.tangents, came, strict=True))
        _launch(region.backward, made)
        return [None if n is None else _seen(made[base(n)], n) for n in region.gradients]


def _launch(kernels: Sequence[Kernel], made: dict[Node, Tensor]) -> None:
    ledger = state.ledger
    before = ledger.path
    for kernel in kernels:
        ledger.path = kernel.nodes[-1].path or before
        for node in kernel.writes:
            over = kernel.over.get(node)
            if over is not None:
                made[node] = _seen(made.pop(over), node)
            else:
                assert node.dtype is not None
                made[node] = empty(node.shape, node.dtype, kernel.name)
        if kernel.library:
            workspace = [empty(shape, dtype, kernel.name) for shape, dtype in kernel.caller.workspace]
            del workspace
        flops: Any = sum(n.flops or product(n.shape) for n in kernel.nodes)
        ledger.call(kernel.name, flops, sum(n.num_bytes for n in kernel.reads), sum(n.num_bytes for n in kernel.writes))
        for node in kernel.frees:
            del made[node]
    ledger.path = before


def _seen(tensor: Tensor, node: Node) -> Tensor:
    """The bytes of a tensor as what a node makes of them."""
    assert node.dtype is not None
    return Tensor(tensor.storage, node.shape, None, node.dtype, product(node.shape))


class _Function:
    """Stands around a module's `forward`: compiles it when it is first called with tensors of some sizes."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.regions: dict[Any, tuple[Region, Any, list[Tensor]]] = {}
        """What was compiled, what it returns without tensors, and the constants that it reads."""

    def __call__(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given: list[Tensor] = []
        _collect((args, kwargs), given)
        owned = [tensor for _, _, tensor in _tensors_of(self.module)]
        inputs = list({id(t): t for t in (*given, *owned)}.values())
        autocast = state.autocast.dtype if state.autocast is not None else None
        surroundings = self.module.training, autocast, state.grad_enabled
        key = tuple((t.shape, t.dtype, t.requires_grad) for t in inputs), surroundings
        if key not in self.regions:
            self.regions[key] = self.compile(forward, args, kwargs, inputs)
        region, structure, others = self.regions[key]
        outputs = apply(CompiledFunction, *inputs, *others, region=region)
        return _restore(structure, iter(outputs))

    def compile(
        self, forward: Callable[..., Any], args: Any, kwargs: Any, inputs: list[Tensor]
    ) -> tuple[Region, Any, list[Tensor]]:
        """Trace and divide it."""
        leaves = []
        for tensor in inputs:
            leaf = tensor.alias()
            leaf.requires_grad = tensor.requires_grad
            leaves.append(leaf)
        instead = {id(t): leaf for t, leaf in zip(inputs, leaves, strict=True)}
        structure: list[Any] = []

        def function(*_: Tensor) -> list[Tensor]:
            made = forward(*_map(args, instead), **_map(kwargs, instead))
            outputs: list[Tensor] = []
            structure.append(_collect(made, outputs))
            return outputs

        with _standing_in(self.module, instead):
            joint, read = trace(function, leaves)
        others = read[len(inputs) :]
        if any(t.requires_grad for t in others):
            raise NotModelledError("compiled code of a module that trains what is outside of it", where="compile")
        return Region(joint), structure[0], others


def _tensors_of(module: Module) -> Iterator[tuple[Module, str, Tensor]]:
    for part in module.modules():
        for name, tensor in part.own_tensors():
            yield part, name, tensor


@contextmanager
def _standing_in(module: Module, instead: dict[int, Tensor]) -> Iterator[None]:
    """The module's tensors are those of a trace."""
    before = list(_tensors_of(module))
    for part, name, tensor in before:
        setattr(part, name, instead[id(tensor)])
    try:
        yield
    finally:
        for part, name, tensor in before:
            setattr(part, name, tensor)


_PLACE = object()
"""Where a tensor was."""


def _collect(value: Any, found: list[Tensor]) -> Any:
    """The tensors of a value, and the value without them."""
    if value.__class__ is Tensor:
        found.append(value)
        return _PLACE
    if isinstance(value, (tuple, list)):
        return type(value)(_collect(v, found) for v in value)
    if isinstance(value, dict):
        return {k: _collect(v, found) for k, v in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{f.name: _collect(getattr(value, f.name), found) for f in fields(value)})
    return value


def _restore(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The value with tensors in their places."""
    if value is _PLACE:
        return next(tensors)
    if isinstance(value, (tuple, list)):
        return type(value)(_restore(v, tensors) for v in value)
    if isinstance(value, dict):
        return {k: _restore(v, tensors) for k, v in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{f.name: _restore(getattr(value, f.name), tensors) for f in fields(value)})
    return value


def _map(value: Any, instead: dict[int, Tensor]) -> Any:
    """The value with other tensors."""
    tensors: list[Tensor] = []
    structure = _collect(value, tensors)
    return _restore(structure, iter([instead[id(t)] for t in tensors]))
