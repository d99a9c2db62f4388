"""GGML's scheduler: which backend runs each node, where the graph is cut, and what is copied at the cuts.

Read: `ggml/src/ggml-backend.cpp` (`ggml_backend_sched_split_graph`) of llama.cpp 4227c9be (August 2025) to af6528e6d
(2026). Weights draw their operations to where they lie; a device draws an operation on many tokens to itself even if
its weight is in host memory, and the weight is copied; devices then grow over nodes that nobody has claimed. With more
than one copy (pipeline parallelism) inputs are there once a copy, and the allocator never takes them back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weigh.records import dataclass
from weigh.runtimes.llama_cpp.allocator import BufferType, Lives, lives
from weigh.runtimes.llama_cpp.ggml import VIEWS, Graph, Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from weigh.dtypes import DType
    from weigh.runtimes.llama_cpp.batch import Sizes

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
    """Divides the graph of a batch among backends."""

    def __init__(
        self,
        backends: Sequence[Backend],
        sizes: Sizes,
        copies: int = 1,
        offload: bool = True,
        host_weights: Iterable[str] = (),
    ) -> None:
        self.backends = backends
        self.sizes = sizes
        self.host = len(backends) - 1
        self.copies = copies
        self.offload = offload
        self.host_weights = frozenset(host_weights)
        """Buffers of weights in plain host memory; repacked ones are not."""
        self._holders: dict[tuple[str, str, DType], int] = {}

    def lives(self, graph: Graph) -> list[Lives]:
        """What each compute buffer holds when."""
        nodes, leaves = self.split(graph)
        return lives(nodes, leaves, [b.kind for b in self.backends], len(graph.outputs))

    # -- which backend ---------------------------------------------------------------------------

    def _holder(self, buffer: str, node: Tensor) -> int:
        """The first that can use the buffer and has a kernel for the node; -1 if none does."""
        key = buffer, node.op, node.src[0].dtype if node.src else node.dtype
        found = self._holders.get(key)
        if found is None:
            able = (i for i, b in enumerate(self.backends) if b.reads(buffer) and b.runs(node))
            found = self._holders[key] = next(able, -1)
        return found

    def _at_first(self, node: Tensor) -> int:
        """Where a node must or prefers to be, before its neighbours are asked (`backend_id_from_cur`)."""
        if node.backend is not None:
            return node.backend
        buffer = node.buffer if node.view is None else node.view.buffer
        if buffer is not None:
            held = self._holder(buffer, node)
            if held >= 0:
                return held
        if node.is_input:
            return self.host
        if node.op in ("ROPE", "FLASH_ATTN_EXT"):
            return -1
        for operand in node.src:
            if operand.is_weight:
                assert operand.buffer is not None
                held = self._holder(operand.buffer, node)
                if self.offload and held == self.host and operand.buffer in self.host_weights:
                    for index in range(self.host):
                        if self.backends[index].runs(node) and self.sizes.reaches(_rows(node), OFFLOAD_FROM):
                            return index
                return held
        return -1

    def _assign(self, graph: Graph) -> None:
        """The number of the backend of every tensor."""
        for tensor in (*graph.leaves, *graph.nodes):
            tensor.on = self._at_first(tensor)
        working = [node for node in graph.nodes if node.op not in VIEWS]
        for nodes, with_host in ((working, False), (working[::-1], False), (working, True), (working[::-1], True)):
            self._spread(nodes, with_host)
        for node in working:
            if node.on < 0:
                node.on = self._best(node)
        for node in graph.nodes:
            self._follow(node)

    def _spread(self, nodes: Sequence[Tensor], with_host: bool) -> None:
        """Backends grow over the nodes beside theirs that nobody has claimed, devices before the host."""
        current = -1
        for node in nodes:
            own = node.on
            if own >= 0:
                current = own if with_host or own != self.host else -1
            elif current >= 0 and self.backends[current].runs(node):
                node.on = current

    def _follow(self, node: Tensor) -> None:
        """Views are where their memory is, operands that nobody placed where they are read."""
        if node.on < 0 and node.view is not None:
            node.on = node.view.on
        for operand in node.src:
            if operand.on < 0:
                operand.on = node.on if operand.view is None else operand.view.on
        if node.on < 0:
            node.on = next(i for i, b in enumerate(self.backends) if b.runs(node))

    def _best(self, node: Tensor) -> int:
        """The backend that can use most of the operands where they are."""

        def usable(index: int) -> int:
            return sum(self._can_use(operand, index) for operand in node.src)

        able = [index for index, backend in enumerate(self.backends) if backend.runs(node)]
        return max(able, key=lambda index: (usable(index), -index))

    def _can_use(self, tensor: Tensor, index: int) -> bool:
        whole = tensor if tensor.view is None else tensor.view
        buffer = whole.buffer
        if buffer is None:
            found = tensor.on if tensor.on >= 0 else whole.on
            if found < 0:
                return False
            buffer = self.backends[found].kind.name
        return self.backends[index].reads(buffer)

    # -- cuts ------------------------------------------------------------------------------------

    def split(self, graph: Graph) -> tuple[list[Tensor], list[Tensor]]:
        """Nodes and leaves with the copies between backends among them, each with the number of its backend."""
        self._assign(graph)
        copies: dict[tuple[int, int], list[Tensor]] = {}
        splits: list[tuple[int, list[Tensor], list[Tensor]]] = []
        current = next(node.on for node in graph.nodes if node.op not in VIEWS)
        inputs: list[Tensor] = []
        held: list[Tensor] = []
        read: dict[int, Tensor] = {}
        splits.append((current, inputs, held))
        for node in graph.nodes:
            if node.op in VIEWS:
                held.append(node)
                continue
            own = node.on
            if own != current or (inputs and self._needs_a_weight(node, current)):
                current, inputs, held = own, [], []
                splits.append((current, inputs, held))
            for place, operand in enumerate(node.src):
                if operand.is_input and operand.op == "NONE":
                    read.setdefault(id(operand), operand)
                if operand.on == current or self._can_use(operand, current):
                    continue
                key = id(operand), current
                if key not in copies:
                    copies[key] = [self._copy(operand, current, node.layer) for _ in range(self.copies)]
                    inputs.append(operand)
                node.src = (*node.src[:place], copies[key][0], *node.src[place + 1 :])
            held.append(node)
        return self._together(graph, splits, copies, list(read.values()))

    def _needs_a_weight(self, node: Tensor, current: int) -> bool:
        """A split copies the weights of one operation only, so that their memory serves the next."""
        return any(o.is_weight and o.on != current and not self._can_use(o, current) for o in node.src)

    def _copy(self, tensor: Tensor, backend: int, layer: int) -> Tensor:
        made = Tensor("NONE", tensor.ne, tensor.dtype, nb=tensor.nb)
        made.name, made.on, made.layer, made.wanted = tensor.name, backend, layer, layer
        made.is_input = made.is_output = self.copies > 1
        return made

    def _together(
        self,
        graph: Graph,
        splits: list[tuple[int, list[Tensor], list[Tensor]]],
        copies: dict[tuple[int, int], list[Tensor]],
        read: list[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        nodes: list[Tensor] = []
        leaves: list[Tensor] = []
        for backend, inputs, held in splits:
            for tensor in inputs:
                # keeps the original until it is copied, and makes room for the copy where the split begins
                copy = copies[id(tensor), backend][0]
                kept = Tensor("NONE", tensor.ne, tensor.dtype, (tensor,), tensor, tensor.nb)
                kept.on, kept.layer, copy.layer = tensor.on, held[0].layer, held[0].layer
                nodes += (kept, copy)
            nodes += held
        if self.copies > 1:
            for leaf in read:
                leaf.is_output = True
                leaves += [leaf, *(self._copy(leaf, leaf.on, -1) for _ in range(self.copies - 1))]
            for backend, inputs, _ in splits:
                for tensor in inputs:
                    leaves += copies[id(tensor), backend]
        for leaf in graph.leaves:
            if leaf.on < 0:
                leaf.on = self.host
        return nodes, leaves + graph.leaves
