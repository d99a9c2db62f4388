"""A forward pass and its backward pass, run once on ghost tensors beside the device and written down as one graph.

What AOTAutograd does with proxies: the function runs, then the engine runs back from its outputs, and every operation
of both becomes a node. In-place operations make a new node for the same tensor (functionalization).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from weigh.dtypes import DType, get
from weigh.errors import NotModelledError
from weigh.ghost.autocast import Autocast
from weigh.ghost.autograd import backward
from weigh.ghost.ledger import Ledger
from weigh.ghost.state import saved_tensors_hooks, state
from weigh.ghost.tensor import Tensor, empty
from weigh.techniques.compiling.decompositions import decompose
from weigh.techniques.compiling.graph import DISTINCT, Graph, Node
from weigh.techniques.compiling.partition import Joint

FORWARD_OF: dict[str, tuple[str, int, int]] = {
    "aten::native_layer_norm_backward": ("aten::native_layer_norm", 3, 1),
    "aten::nll_loss_backward": ("aten::nll_loss_forward", 2, 1),
    **{
        f"aten::_scaled_dot_product_{kernel}_backward": (f"aten::_scaled_dot_product_{kernel}", 3, 0)
        for kernel in ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
    },
}
"""Backward operations that read what their forward operation returned: its name, how many of its inputs stand behind
the gradient among theirs, and from which of its results on they read."""


class Tracer:
    """Makes nodes of what runs. Tensors that nothing in it made are inputs."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.ledger = Ledger()
        """Of what runs beside the device."""
        self.inputs: list[Tensor] = []
        self.input_nodes: list[Node] = []
        self._known: dict[int, Node] = {}
        self._views: dict[tuple[int, tuple[Any, ...], Any], Node] = {}
        self._ran: dict[tuple[str, tuple[Node | None, ...]], tuple[list[Node | None], list[Node]]] = {}
        """What operations that a backward operation looks back to read and returned, by name and first inputs."""
        self._kept_alive: list[Any] = []
        self._seen = 0
        """Events of the ledger that belong to operations before."""

    def node(self, tensor: Tensor) -> Node:
        """The node that made it, or an alias of it; a new input if none did."""
        found = self._known.get(id(tensor))
        if found is None:
            found = self._views.get((id(tensor.storage), tensor.shape, tensor.strides))
        if found is None and tensor.storage.ledger is self.ledger:
            made = self.ledger.allocations[tensor.storage.number - 1].op if tensor.storage.number else "an empty tensor"
            raise NotModelledError(f"{made.removeprefix('aten::')} in compiled code", where="compile")
        if found is None:
            found = self.graph.add("input", [], tensor.shape, tensor.dtype, DISTINCT)
            self.inputs.append(tensor)
            self.input_nodes.append(found)
        self.know(tensor, found)
        return found

    def know(self, tensor: Tensor, node: Node) -> None:
        """The tensor is what the node makes."""
        self._known[id(tensor)] = node
        self._views[id(tensor.storage), tensor.shape, tensor.strides] = node
        self._kept_alive.append(tensor)

    def __call__(self, op: Any, tensors: Sequence[Tensor | None], attributes: dict[str, Any], result: Any) -> None:
        """An operation of the op table has run."""
        results = [result] if result.__class__ is Tensor else list(result)
        inputs = [None if t is None else self.node(t) for t in tensors]
        looks_back = FORWARD_OF.get(op.name)
        if looks_back is not None:
            name, count, first = looks_back
            read, returned = self._ran[name, tuple(inputs[1 : 1 + count])]
            inputs.extend([*read[count:], *returned[first:]])
        self.graph.path = state.ledger.path
        sizes: list[Any] = [None if r is None else (r.shape, r.dtype) for r in results]
        before, workspace = len(self.graph.nodes), self._dead()
        made = decompose(self.graph, op.name, inputs, attributes, sizes)
        if len(self.graph.nodes) > before:
            self.graph.nodes[before].workspace = workspace
            self.graph.nodes[-1].flops += op.flops(next(r for r in results if r is not None), *tensors)
        self._ran[op.name, tuple(inputs[:3])] = inputs, made
        for tensor, node in zip(results, made, strict=False):
            if tensor is not None and node is not None:
                self.know(tensor, node)

    def _dead(self) -> list[tuple[Any, DType]]:
        """What the last operation allocated and freed."""
        ledger = self.ledger
        born = {e for e in ledger.events[self._seen :] if e > 0}
        dead = [-e for e in ledger.events[self._seen :] if -e in born]
        self._seen = len(ledger.events)
        allocations = [ledger.allocations[n - 1] for n in dead]
        return [(a.shape, get(a.dtype)) for a in allocations]


@contextmanager
def _tracing(tracer: Tracer) -> Iterator[None]:
    """Operations are written down, and what they allocate is beside the device; it has casts of its own."""
    before = state.ledger, state.recorder, state.autocast
    tracer.ledger.path = state.ledger.path
    state.ledger, state.recorder = tracer.ledger, tracer
    if state.autocast is not None:
        state.autocast = Autocast(state.autocast.dtype)
    try:
        with saved_tensors_hooks(None):
            yield
    finally:
        state.ledger, state.recorder, state.autocast = before


def trace(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> tuple[Joint, list[Tensor]]:
    """The graph of `function(*inputs)` and, where gradients are on, of its gradients; and all that it reads.

    `inputs` are leaves that stand for those of the real run, which `function` reads and nothing else that is trained.

    Raises:
        NotModelledError: an operation whose compiled code is not described.
    """
    tracer = Tracer()
    with _tracing(tracer):
        for tensor in inputs:
            tracer.node(tensor)
        outputs = list(function(*inputs))
        differentiable = [o for o in outputs if o.node is not None]
        roots = [o for o in differentiable if o.shape == ()] or differentiable  # a loss alone, or what has none yet
        tangents = [empty(o.shape, o.dtype, "tangent") for o in roots]
        nodes = []
        for tangent in tangents:
            node = tracer.graph.add("tangent", [], tangent.shape, tangent.dtype, DISTINCT)
            tracer.know(tangent, node)
            nodes.append(node)
        made = tuple(tracer.node(o) for o in outputs)
        if roots:
            backward(roots, list(tangents))
        read = list(tracer.inputs)
        gradients = tuple(None if t.grad is None else _as_delivered(tracer.node(t.grad)) for t in read)
    return Joint(tracer.graph, tuple(tracer.input_nodes), tuple(nodes), made, gradients), read


def _as_delivered(gradient: Node) -> Node:
    """Without the copy that a leaf makes of a gradient that others see too: compiled code returns it as it is."""
    return gradient.inputs[0] if gradient.op == "clone" and not gradient.users else gradient
