"""GGML's scheduler: which backend runs each node, where the graph is cut, and what is copied at the cuts.

Read: `ggml/src/ggml-backend.cpp` (`ggml_backend_sched_split_graph`) of llama.cpp 4227c9be (August 2025) to af6528e6d
(2026). Weights draw their operations to where they lie; a device draws an operation on many tokens to itself even if
its weight is in host memory, and the weight is copied; devices then grow over nodes that nobody has claimed. With more
than one copy (pipeline parallelism) inputs are there once a copy, and the allocator never takes them back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.records import dataclass
from weigh.runtimes.llama_cpp.allocator import BufferType, reserve
from weigh.runtimes.llama_cpp.ggml import VIEWS, Graph, Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

COPIES = 4
"""Copies of inputs with pipeline parallelism (`GGML_SCHED_MAX_COPIES`)."""
OFFLOAD_FROM = 32
"""Tokens from which a device runs operations on weights in host memory."""
GET_ROWS_TYPES = frozenset("fp32 fp16 bf16 int32 q4_0 q4_1 q5_0 q5_1 q8_0".split())
"""Formats of which CUDA, ROCm and Vulkan can look rows up; other embeddings are read on the host."""


@dataclass(frozen=True, slots=True)
class Backend:
    """A device, or the host, which is the last."""

    kind: BufferType
    """What its compute buffer is made of."""
    buffers: frozenset[str]
    """Buffers that it can use; every one that is no device's, if it is the host."""
    is_host: bool = False
    flash_attention: bool = True

    def runs(self, node: Tensor) -> bool:
        """It has a kernel for the node."""
        if self.is_host:
            return True
        if node.op == "GET_ROWS":
            return node.src[0].dtype.name in GET_ROWS_TYPES
        return self.flash_attention or node.op != "FLASH_ATTN_EXT"

    def reads(self, buffer: str) -> bool:
        """It can use tensors in the buffer."""
        return buffer in self.buffers


def _rows(node: Tensor) -> int:
    """Tokens of an operation (`get_op_batch_size`)."""
    if node.op == "GET_ROWS":
        return 0
    if node.op == "MUL_MAT":
        return node.ne[1]
    return node.ne[2] if node.op in ("MUL_MAT_ID", "ROPE") else node.ne[1] * node.ne[2] * node.ne[3]


class Scheduler:
    """Divides graphs among backends."""

    def __init__(
        self, backends: Sequence[Backend], copies: int = 1, offload: bool = True, host_weights: Iterable[str] = ()
    ) -> None:
        self.backends = backends
        self.copies = copies
        self.offload = offload
        self.host_weights = frozenset(host_weights)
        """Buffers of weights in plain host memory; repacked ones are not."""

    def reserve(self, graph: Graph) -> dict[str, int]:
        """Bytes of each compute buffer, by the name of its buffer type."""
        return reserve(*self.split(graph))

    # -- which backend ---------------------------------------------------------------------------

    def _holder(self, tensor: Tensor, node: Tensor) -> int | None:
        whole = tensor if tensor.view is None else tensor.view
        if whole.buffer is None:
            return None
        return next((i for i, b in enumerate(self.backends) if b.reads(whole.buffer) and b.runs(node)), None)

    def _at_first(self, node: Tensor) -> int | None:
        """Where a node must or prefers to be, before its neighbours are asked (`backend_id_from_cur`)."""
        held = self._holder(node, node)
        if held is not None:
            return held
        if node.is_input:
            return len(self.backends) - 1
        if node.op in ("ROPE", "FLASH_ATTN_EXT"):
            return None
        for operand in node.src:
            if operand.is_weight:
                held, host = self._holder(operand, node), len(self.backends) - 1
                if self.offload and held == host and operand.buffer in self.host_weights:
                    for index in range(host):
                        if self.backends[index].runs(node) and _rows(node) >= OFFLOAD_FROM:
                            return index
                return held
        return None

    def _assign(self, graph: Graph) -> dict[int, int]:
        """The number of the backend of every tensor, by its identity."""
        where: dict[int, int] = {}
        for tensor in (*graph.leaves, *graph.nodes):
            found = self._at_first(tensor) if tensor.backend is None else tensor.backend
            if found is not None:
                where[id(tensor)] = found
        working = [node for node in graph.nodes if node.op not in VIEWS]
        for nodes, with_host in ((working, False), (working[::-1], False), (working, True), (working[::-1], True)):
            self._spread(nodes, where, with_host)
        for node in working:
            if id(node) not in where:
                where[id(node)] = self._best(node, where)
        for node in graph.nodes:
            self._follow(node, where)
        return where

    def _spread(self, nodes: Sequence[Tensor], where: dict[int, int], with_host: bool) -> None:
        """Backends grow over the nodes beside theirs that nobody has claimed, devices before the host."""
        current: int | None = None
        for node in nodes:
            own = where.get(id(node))
            if own is not None:
                current = own if with_host or own != len(self.backends) - 1 else None
            elif current is not None and self.backends[current].runs(node):
                where[id(node)] = current

    def _follow(self, node: Tensor, where: dict[int, int]) -> None:
        """Views are where their memory is, operands that nobody placed where they are read."""
        if node.view is not None and id(node) not in where and id(node.view) in where:
            where[id(node)] = where[id(node.view)]
        for operand in node.src:
            if id(operand) not in where:
                found = where.get(id(node if operand.view is None else operand.view))
                if found is not None:
                    where[id(operand)] = found
        if id(node) not in where:
            where[id(node)] = next(i for i, b in enumerate(self.backends) if b.runs(node))

    def _best(self, node: Tensor, where: dict[int, int]) -> int:
        """The backend that can use most of the operands where they are."""

        def usable(index: int) -> int:
            return sum(self._can_use(operand, index, where) for operand in node.src)

        able = [index for index, backend in enumerate(self.backends) if backend.runs(node)]
        return max(able, key=lambda index: (usable(index), -index))

    def _can_use(self, tensor: Tensor, index: int, where: dict[int, int]) -> bool:
        whole = tensor if tensor.view is None else tensor.view
        buffer = whole.buffer
        if buffer is None:
            found = where.get(id(tensor), where.get(id(whole)))
            if found is None:
                return False
            buffer = self.backends[found].kind.name
        return self.backends[index].reads(buffer)

    # -- cuts ------------------------------------------------------------------------------------

    def split(self, graph: Graph) -> tuple[list[Tensor], list[Tensor], tuple[list[int], list[int]], list[BufferType]]:
        """Nodes and leaves with the copies between backends among them, the backends of both, and the buffer types."""
        where = self._assign(graph)
        copies: dict[tuple[int, int], list[Tensor]] = {}
        splits: list[tuple[int, list[Tensor], list[Tensor]]] = []
        current = next(where[id(node)] for node in graph.nodes if node.op not in VIEWS)
        inputs: list[Tensor] = []
        held: list[Tensor] = []
        read: dict[int, Tensor] = {}
        splits.append((current, inputs, held))
        for node in graph.nodes:
            if node.op in VIEWS:
                held.append(node)
                continue
            own = where[id(node)]
            if own != current or (inputs and self._needs_a_weight(node, current, where)):
                current, inputs, held = own, [], []
                splits.append((current, inputs, held))
            replaced = list(node.src)
            for place, operand in enumerate(node.src):
                if operand.is_input and operand.op == "NONE":
                    read.setdefault(id(operand), operand)
                if where[id(operand)] == current or self._can_use(operand, current, where):
                    continue
                key = id(operand), current
                if key not in copies:
                    copies[key] = [self._copy(operand) for _ in range(self.copies)]
                    inputs.append(operand)
                replaced[place] = copies[key][0]
            node.src = tuple(replaced)
            held.append(node)
        return self._together(graph, where, splits, copies, list(read.values()))

    def _needs_a_weight(self, node: Tensor, current: int, where: dict[int, int]) -> bool:
        """A split copies the weights of one operation only, so that their memory serves the next."""
        return any(o.is_weight and where[id(o)] != current and not self._can_use(o, current, where) for o in node.src)

    def _copy(self, tensor: Tensor) -> Tensor:
        made = Tensor("NONE", tensor.ne, tensor.dtype, nb=tensor.nb)
        made.is_input = made.is_output = self.copies > 1
        return made

    def _together(
        self,
        graph: Graph,
        where: dict[int, int],
        splits: list[tuple[int, list[Tensor], list[Tensor]]],
        copies: dict[tuple[int, int], list[Tensor]],
        read: list[Tensor],
    ) -> tuple[list[Tensor], list[Tensor], tuple[list[int], list[int]], list[BufferType]]:
        nodes: list[Tensor] = []
        leaves: list[Tensor] = []
        node_backends: list[int] = []
        leaf_backends: list[int] = []
        for backend, inputs, held in splits:
            for tensor in inputs:
                # keeps the original until it is copied, and makes room for the copy where the split begins
                nodes += [Tensor("NONE", tensor.ne, tensor.dtype, (tensor,), tensor, tensor.nb)]
                nodes += [copies[id(tensor), backend][0]]
                node_backends += [where[id(tensor)], backend]
            nodes += held
            node_backends += [where[id(node)] for node in held]
        if self.copies > 1:
            for leaf in read:
                leaf.is_output = True
                leaves += [leaf, *(self._copy(leaf) for _ in range(self.copies - 1))]
                leaf_backends += [where[id(leaf)]] * self.copies
            for backend, inputs, _ in splits:
                for tensor in inputs:
                    leaves += copies[id(tensor), backend]
                    leaf_backends += [backend] * self.copies
        leaves += graph.leaves
        leaf_backends += [where.get(id(leaf), len(self.backends) - 1) for leaf in graph.leaves]
        return nodes, leaves, (node_backends, leaf_backends), [b.kind for b in self.backends]
