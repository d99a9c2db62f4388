"""The kernels and buffers of one compiled pass: TorchInductor's fusion and memory planning. Modelled.

Read: torch/_inductor/ir.py, scheduler.py, codegen/wrapper.py (2.13). Mirrored:

- pointwise operations are not run where they stand: each is computed inside of whatever reads it, unless a library or
  the caller wants it, it reads more than eight tensors, or several others read it and it reads more than four;
- what is written (the rest of them, and reductions) is fused with its neighbours over the same elements as long as no
  library call lies between; what only its own kernel reads is never in memory;
- a buffer dies after the last kernel that reads it; one that dies is written over by a result of the same size.

Left out: the scheduler's search for an order with a lower peak, and reuse of dead buffers, which it does only where the
peak stays the same. Kernels are in the order of the graph.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from weigh.dims import product
from weigh.techniques.compiling.graph import ALIASES, LOWERED, REDUCTIONS, VIEWS, Node

MANY_READS = 4
"""`realize_reads_threshold`: of an operation that several read."""
TOO_MANY_READS = 8
"""`realize_acc_reads_threshold`: of any."""
MANY_OPERATIONS = 30
"""`realize_opcount_threshold`."""


@dataclass(eq=False, slots=True)
class Kernel:
    """One launch: what it writes, and what is gone after it."""

    nodes: list[Node] = field(default_factory=list)
    reads: dict[Node, None] = field(default_factory=dict)
    writes: list[Node] = field(default_factory=list)
    over: dict[Node, Node] = field(default_factory=dict)
    """Results that are written over a buffer that dies here."""
    frees: list[Node] = field(default_factory=list)
    library: bool = False

    @property
    def caller(self) -> Node:
        """The node that is a library's call, of which the others are parts."""
        return self.nodes[0].inputs[0] if self.nodes[0].op == "part" else self.nodes[0]

    @property
    def name(self) -> str:
        """As a profiler would show it."""
        if self.library:
            return "aten::" + self.caller.op
        return "triton::" + "_".join(dict.fromkeys(n.op for n in self.nodes))


def base(node: Node) -> Node:
    """What a view is a view of."""
    while node.op in VIEWS or node.op in ALIASES or node.op in ("split", "unbind") or _is_part_of_view(node):
        node = node.inputs[0]
    return node


def _is_part_of_view(node: Node) -> bool:
    return node.op == "part" and node.inputs[0].op in ("split", "unbind")


def _is_library(node: Node) -> bool:
    return node.op not in LOWERED and node.op not in ("input", "tangent", "index_put")


def lower(
    order: Sequence[Node], given: Collection[Node], wanted: Iterable[Node], mortal: Collection[Node]
) -> list[Kernel]:
    """The kernels that compute `wanted` from `given` by way of `order`.

    `mortal` are those of the given that die after their last use.
    """
    return _Lowering(order, frozenset(given), frozenset(base(w) for w in wanted)).kernels(frozenset(mortal))


class _Lowering:
    def __init__(self, order: Sequence[Node], given: frozenset[Node], wanted: frozenset[Node]) -> None:
        self.order = order
        self.members = frozenset(order)
        self.given = given
        self.wanted = wanted
        self.reads: dict[Node, dict[Node, None]] = {}
        """The buffers that an operation reads, through all that is computed inside of it."""
        self.operations: dict[Node, int] = {}
        self.level: dict[Node, int] = {}
        """How many library calls one after the other it takes to get there."""
        self.extent: dict[Node, tuple[bool, int]] = {}
        """Over how many elements its kernel runs; reductions over leading dimensions run in another order."""
        self.written: dict[Node, Kernel] = {}

    def readers(self, node: Node) -> list[Node]:
        """The operations that read it, through views."""
        found: list[Node] = []
        stack = [node]
        while stack:
            for user in stack.pop().users:
                if user in self.members:
                    (stack if base(user) is not user else found).append(user)
        return found

    def kernels(self, mortal: frozenset[Node]) -> list[Kernel]:
        """All kernels, in order."""
        groups: dict[tuple[int, tuple[bool, int]], Kernel] = {}
        for node in self.order:
            if base(node) is node and node not in self.given and node.op not in ("input", "tangent"):
                self.add(node, groups)
        ordered = self.in_order()
        self.leave_out(ordered)
        self.plan(ordered, mortal)
        return ordered

    def add(self, node: Node, groups: dict[tuple[int, tuple[bool, int]], Kernel]) -> None:
        """What the node reads, whether it is written, and in which kernel."""
        reads: dict[Node, None] = {}
        operations = 1
        for source in (base(i) for i in (node.inputs[0].inputs if node.op == "part" else node.inputs)):
            inside = source in self.reads and source not in self.written
            reads.update(self.reads[source] if inside else {source: None})
            operations += self.operations[source] if inside else 0
        whole = node.inputs[0] if node.op == "part" else node
        extent = self.extent_of(node, whole, reads)
        level = max((self.level.get(r, 0) + (self.extent.get(r, extent) != extent) for r in reads), default=0)
        self.reads[node], self.operations[node] = reads, operations
        if _is_library(whole):
            if whole is node and node.dtype is None:
                return  # its parts are written
            self.level[node] = level + 1
            kernel = self.written.get(whole) or Kernel(library=True)
            if whole is not node:
                self.written[whole] = kernel
        elif node.dtype is None:
            return
        elif node.op == "index_put":
            self.level[node] = level + 1
            kernel = Kernel()
        else:
            self.level[node], self.extent[node] = level, extent
            if not self.is_written(node, whole):
                return
            kernel = groups.setdefault((level, extent), Kernel())
        kernel.nodes.append(node)
        kernel.reads.update(reads)
        self.written[node] = kernel

    def extent_of(self, node: Node, whole: Node, reads: dict[Node, None]) -> tuple[bool, int]:
        """That of what is reduced; that of a reduction whose results are worked on; else its own size."""
        if whole.op in REDUCTIONS or whole.op == "var_mean":
            source = whole.inputs[0]
            outer = bool(whole.reduced) and len(source.shape) - 1 not in whole.reduced
            return outer, product(source.shape)  # type: ignore[return-value]
        size = product(node.shape)
        level = max((self.level.get(r, 0) for r in reads), default=0)
        alike = (r for r in reads if r in self.extent and self.level[r] == level and product(r.shape) == size)
        return max((self.extent[r] for r in alike), key=lambda e: e[1], default=(False, size))  # type: ignore[return-value]

    def is_written(self, node: Node, whole: Node) -> bool:
        """Into memory, or at least for another of the same kernel."""
        if node in self.wanted or whole.op in REDUCTIONS or whole.op == "var_mean":
            return True
        readers = self.readers(node)
        if any(_is_library(r) for r in readers):
            return True
        count = len(self.reads[node])
        busy = count > MANY_READS or self.operations[node] > MANY_OPERATIONS
        return count > TOO_MANY_READS or (len(readers) > 1 and busy)

    def in_order(self) -> list[Kernel]:
        """Every kernel after those whose buffers it reads."""
        found: list[Kernel] = []
        begun: set[int] = set()

        def emit(kernel: Kernel) -> None:
            if id(kernel) in begun:
                return
            begun.add(id(kernel))
            for read in kernel.reads:
                if read in self.written:
                    emit(self.written[read])
            found.append(kernel)

        for node in self.order:
            if node in self.written:
                emit(self.written[node])
        return found

    def leave_out(self, kernels: list[Kernel]) -> None:
        """What only its own kernel reads is not in memory."""
        outside: set[Node] = set(self.wanted)
        for kernel in kernels:
            outside.update(r for r in kernel.reads if self.written.get(r) is not kernel)
        for kernel in kernels:
            kernel.reads = {r: None for r in kernel.reads if self.written.get(r) is not kernel}
            kernel.writes = [n for n in kernel.nodes if n in outside or kernel.library]

    def plan(self, kernels: list[Kernel], mortal: frozenset[Node]) -> None:
        """When buffers die, and which are written over."""
        last: dict[Node, Kernel] = {}
        for kernel in kernels:
            last.update(dict.fromkeys(kernel.writes, kernel))
            last.update(dict.fromkeys(kernel.reads, kernel))
        for node, kernel in last.items():
            if node not in self.wanted and (node in self.written or node in mortal):
                kernel.frees.append(node)
        for kernel in kernels:
            if kernel.library:
                continue
            for made in kernel.writes:
                for dying in kernel.frees:
                    if dying.num_bytes == made.num_bytes and dying not in kernel.writes:
                        kernel.over[made] = dying
                        kernel.frees.remove(dying)
                        break
