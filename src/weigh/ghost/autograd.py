"""The autograd tape and its engine, with PyTorch's order and PyTorch's lifetimes.

What is mirrored, with where to find it in PyTorch:

- nodes run in the order of their sequence numbers, last made first, once all their gradients have come; a leaf's
  accumulation runs as soon as it is complete (engine.cpp, `ReadyQueue`, `CompareNodeTaskTime`);
- a node's gradients are reduced to the shape and cast to the dtype of its inputs before its own gradient is dropped
  (`validate_outputs`), then its saved tensors go (`release_variables`), and only then are the gradients handed on;
  the node itself stays as long as the graph does (until the loss is dropped);
- two gradients for one input are summed in place where the buffer alone owns the first, which is dense and no view
  (input_buffer.cpp, `can_accumulate_inplace`), else into a new tensor; under a dispatch mode always into a new one;
- a leaf without a gradient takes the incoming one where nothing else refers to it and its layout is the leaf's, else a
  copy; a leaf with one adds in place (accumulate_grad.h).

Leaves out: hooks on tensors, double backward, retained graphs.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, Protocol

from weigh.dims import Shape
from weigh.dtypes import DType
from weigh.ghost import ops
from weigh.ghost.state import state
from weigh.ghost.tensor import Tensor, is_dense
from weigh.trace.events import GRADIENT


class Packed(Protocol):
    """What a saved-tensor hook leaves in place of a tensor."""

    def unpack(self) -> Tensor:
        """The tensor, recomputed or fetched."""


class Node:
    """One op on the tape: which inputs want gradients, what it saved, where its gradients go."""

    __slots__ = ("buffer", "edges", "inputs", "meta", "needs", "op", "path", "saved", "sequence", "unit")

    def __init__(self, op: Any, tensors: tuple[Tensor | None, ...], needs: list[bool]) -> None:
        self.op = op
        self.needs = needs
        self.edges: list[tuple[Node | Tensor, int] | None] = [
            (t if t.node is None else t.node, t.output_nr) if need else None  # type: ignore[union-attr,misc]
            for t, need in zip(tensors, needs, strict=True)
        ]
        self.inputs: list[tuple[Shape, DType] | None] = [
            (t.shape, t.dtype) if need else None  # type: ignore[union-attr]
            for t, need in zip(tensors, needs, strict=True)
        ]
        self.saved: list[Tensor | Packed | None] = []
        self.meta: Any = None
        self.buffer: dict[int, Tensor] = {}
        ledger = state.ledger
        self.path = ledger.path
        self.unit = ledger.unit
        state.sequence += 1
        self.sequence = state.sequence

    def save(self, *tensors: Tensor | None) -> None:
        """Keep tensors for the backward pass, through the saved-tensor hook if there is one."""
        pack = state.pack_hook
        if pack is None:
            self.saved.extend(tensors)
        else:
            self.saved.extend(t if t is None else pack(t) for t in tensors)

    def save_output(self, tensor: Tensor) -> None:
        """Keep an output: without its node, as PyTorch does, for a tensor may not own the node that owns it."""
        self.save(tensor.alias())

    def unpack(self) -> list[Any]:
        """The saved tensors, in the order in which they were saved."""
        return [t if t is None or t.__class__ is Tensor else t.unpack() for t in self.saved]  # type: ignore[union-attr]


class _Leaf:
    """A leaf's share of one backward pass: how many gradients are still to come, and their sum so far."""

    __slots__ = ("buffer", "tensor", "waiting")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.waiting = 0
        self.buffer: dict[int, Tensor] = {}


def queue_callback(callback: Callable[[], None]) -> None:
    """Call this when the backward pass that is running, the outermost if they are nested, has run."""
    _passes[0].append(callback)


_passes: list[list[Callable[[], None]]] = []
"""The callbacks of the backward passes that are running, the outermost first."""


def backward(roots: list[Tensor], gradients: list[Tensor | None]) -> None:
    """Run the tape from `roots` back, freeing what its nodes saved.

    A missing gradient is one (`ones_like`). As in PyTorch the caller's frame keeps the gradients to start from to the
    end, so that none of them is stolen or written into.
    """
    ledger = state.ledger
    before = state.grad_enabled, ledger.path, ledger.unit
    state.grad_enabled = False
    callbacks: list[Callable[[], None]] = []
    _passes.append(callbacks)
    try:
        task = _Task()
        task.count_leaves(roots)
        seeds = [g if g is not None else ops.ones_like(r) for r, g in zip(roots, gradients, strict=True)]
        for root, seed in zip(roots, seeds, strict=True):
            seed.handles += 2
            seed.storage.handles += 2
            assert root.node is not None, "backward() of a tensor that nothing differentiable made"
            task.deliver(root.node, root.output_nr, seed)
        task.run()
        ledger.path, ledger.unit = before[1:]
        for callback in callbacks:
            callback()
        for seed in seeds:
            seed.handles -= 1
            seed.storage.handles -= 1
    finally:
        _passes.pop()
        state.grad_enabled, ledger.path, ledger.unit = before


class _Task:
    """One backward pass: the nodes that have gradients, and the leaves that wait for theirs."""

    __slots__ = ("heap", "leaves", "queued", "ready")

    def __init__(self) -> None:
        self.heap: list[tuple[int, Node]] = []
        self.queued: set[int] = set()
        """The nodes that are in the heap, or were."""
        self.leaves: dict[int, _Leaf] = {}
        self.ready: list[_Leaf] = []

    def count_leaves(self, roots: list[Tensor]) -> None:
        """How many gradients will come to each leaf; for nodes the order of their numbers says when all have come."""
        stack = list({r.node.sequence: r.node for r in roots if r.node is not None}.values())
        seen = {n.sequence for n in stack}
        leaves = self.leaves
        while stack:
            for edge in stack.pop().edges:
                if edge is None:
                    continue
                target = edge[0]
                if target.__class__ is Node:
                    if target.sequence not in seen:
                        seen.add(target.sequence)
                        stack.append(target)
                    continue
                leaf = leaves.get(id(target))
                if leaf is None:
                    leaf = leaves[id(target)] = _Leaf(target)  # type: ignore[arg-type]
                leaf.waiting += 1

    def run(self) -> None:
        """Run nodes until none is left; a complete leaf goes before any node."""
        heap, ready = self.heap, self.ready
        while heap or ready:
            if ready:
                _accumulate_grad(ready.pop(0))
            else:
                self.run_node(heapq.heappop(heap)[1])

    def run_node(self, node: Node) -> None:
        """The backward of one op, and what becomes of its gradients."""
        ledger = state.ledger
        ledger.path, ledger.unit = node.path, node.unit
        if not node.buffer:
            self.pass_by(node)
            return
        gradients = _take(node.buffer)
        results = node.op.backward(node, *gradients)
        for index, expected in enumerate(node.inputs):
            if results[index] is None or expected is None:
                continue
            shape, dtype = expected
            if len(results[index].shape) != len(shape) or results[index].shape != shape:
                results[index] = ops.sum_to_size(results[index], shape)
            if results[index].dtype is not dtype:
                results[index] = ops.to(results[index], dtype)
        del gradients
        node.saved = []
        edges = node.edges
        for index, edge in enumerate(edges):
            if edge is None:
                results[index] = None
            elif results[index] is not None:
                results[index].handles += 1
                results[index].storage.handles += 1
        # What is summed into another tensor lives until all are handed on (engine.cpp: `outputs` owns them).
        for index, edge in enumerate(edges):
            if edge is not None:
                self.deliver(edge[0], edge[1], results[index])

    def pass_by(self, node: Node) -> None:
        """Its outputs have undefined gradients, and so have its inputs; what it saved goes all the same."""
        node.saved = []
        for edge in node.edges:
            if edge is not None:
                self.deliver(edge[0], edge[1], None)

    def deliver(self, target: Node | Tensor, slot: int, gradient: Tensor | None) -> None:
        """Put a gradient (None: undefined) into an input buffer; its `handles` already count this slot."""
        if target.__class__ is Node:
            if target.sequence not in self.queued:
                self.queued.add(target.sequence)
                heapq.heappush(self.heap, (-target.sequence, target))
            if gradient is not None:
                _add_to_buffer(target.buffer, slot, gradient)
            return
        leaf = self.leaves[id(target)]
        leaf.waiting -= 1
        if gradient is not None:
            _add_to_buffer(leaf.buffer, 0, gradient)
        if not leaf.waiting and leaf.buffer:
            self.ready.append(leaf)


def _take(buffer: dict[int, Tensor]) -> list[Tensor | None]:
    """The gradients of a buffer by output number, out of the buffer's hands."""
    gradients: list[Tensor | None] = [None] * (max(buffer) + 1)
    for slot, gradient in buffer.items():
        gradient.handles -= 1
        gradient.storage.handles -= 1
        gradients[slot] = gradient
    buffer.clear()
    return gradients


def _add_to_buffer(buffer: dict[int, Tensor], slot: int, gradient: Tensor) -> None:
    old = buffer.get(slot)
    if old is None:
        buffer[slot] = gradient
    elif _sole_owner(old):
        gradient.handles -= 1
        gradient.storage.handles -= 1
    else:
        total = ops.add(old, gradient)
        for used in (old, gradient):
            used.handles -= 1
            used.storage.handles -= 1
        total.handles += 1
        total.storage.handles += 1
        buffer[slot] = total


def _sole_owner(gradient: Tensor) -> bool:
    """input_buffer.cpp, `can_accumulate_inplace`; a dispatch mode makes every tensor "subclass-like", and so never.

    So does the mode that traces what is compiled.

    A view never is one, for it keeps its base and with that a second reference to the storage (variable.h, `ViewInfo`).
    """
    if state.traced or state.recorder is not None or gradient.is_view or gradient.handles != 1:
        return False
    return gradient.storage.handles == 1 and is_dense(gradient)


def _accumulate_grad(leaf: _Leaf) -> None:
    """accumulate_grad.h: steal, copy, or add in place."""
    tensor = leaf.tensor
    (gradient,) = _take(leaf.buffer)
    assert gradient is not None
    if tensor.on_gradient is not None:
        tensor.on_gradient()
    if tensor.grad is None:
        if gradient.handles or not _same_layout(gradient, tensor):
            gradient = ops.clone_like(gradient, tensor)
        tensor.grad = gradient.alias()
        gradient.storage.relabel(GRADIENT)
    del gradient
    if tensor.on_accumulated is not None:
        tensor.on_accumulated()


def _same_layout(gradient: Tensor, tensor: Tensor) -> bool:
    """grad_layout_contract.h: the leaf's own strides if it is dense, else contiguous (sizes of one do not count)."""
    strides = tensor.stride() if is_dense(tensor) else None
    if gradient.strides is None and (strides is None or tensor.strides is None):
        return True
    expected = strides if strides is not None else None
    if expected is None:
        return gradient.strides is None
    return all(a == b for a, b, size in zip(gradient.stride(), expected, tensor.shape, strict=True) if size != 1)
