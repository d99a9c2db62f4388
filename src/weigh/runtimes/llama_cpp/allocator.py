"""GGML's graph allocator: where each tensor of a graph would lie, and so how large a compute buffer is.

Read: `ggml/src/ggml-alloc.c` (`ggml_gallocr_reserve_n`, `ggml_dyn_tallocr_alloc`), alike in its decisions from 2024 to
2026. A node takes the memory of an operand that nobody else needs where its operation may write in place, else the
free block that fits best, else the end of the buffer, which grows; an operand's memory is free after its last reader.
Buffers of more than one chunk (devices that cannot allocate so much at once) are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from weigh.runtimes.llama_cpp.ggml import IN_PLACE, row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from weigh.runtimes.llama_cpp.ggml import Tensor


class BufferType(NamedTuple):
    """What a backend's memory is handed out as."""

    name: str
    """As llama.cpp prints it: "CUDA0", "CUDA_Host", "CPU"."""
    alignment: int
    row_padding: int = 0
    """Elements that rows of quantized matrices are made a multiple of (CUDA's `MATRIX_ROW_PADDING`)."""

    def size(self, tensor: Tensor) -> int:
        """Bytes that a tensor takes, aligned."""
        found = tensor.num_bytes
        if self.row_padding and tensor.dtype.kind == "block" and tensor.ne[0] % self.row_padding:
            found += row(tensor.dtype, self.row_padding - tensor.ne[0] % self.row_padding)
        return -(-found // self.alignment) * self.alignment


class Arena:
    """One buffer: free blocks by address, the last of which has no end."""

    def __init__(self) -> None:
        self.free: list[list[int]] = [[0, 2**62]]
        self.largest = 0
        """Bytes up to the highest address that was ever in use."""

    def take(self, size: int) -> int:
        """An address: the block that fits best, the end of the buffer where none does."""
        best, best_size = len(self.free) - 1, 2**63
        for index in range(len(self.free) - 1):
            length = self.free[index][1]
            if size <= length <= best_size:
                best, best_size = index, length
        block = self.free[best]
        address = block[0]
        block[0] += size
        block[1] -= size
        if not block[1]:
            del self.free[best]
        self.largest = max(self.largest, address + size)
        return address

    def give(self, address: int, size: int) -> None:
        """Bytes that are free again."""
        free = self.free
        for index, block in enumerate(free):
            if block[0] + block[1] == address:
                block[1] += size
                if index + 1 < len(free) and block[0] + block[1] == free[index + 1][0]:
                    block[1] += free[index + 1][1]
                    del free[index + 1]
                return
            if address + size == block[0]:
                block[0], block[1] = address, block[1] + size
                return
            if block[0] > address:
                free.insert(index, [address, size])
                return
        free.append([address, size])


class _State:
    """What the allocator knows of a tensor."""

    __slots__ = ("address", "allocated", "backend", "children", "views")

    def __init__(self) -> None:
        self.children = self.views = self.address = self.backend = 0
        self.allocated = False


class _Run:
    def __init__(self, kinds: Sequence[BufferType]) -> None:
        self.kinds = kinds
        arenas = {kind: Arena() for kind in kinds}
        self.arenas = [arenas[kind] for kind in kinds]
        self.states: dict[int, _State] = {}

    def state(self, tensor: Tensor) -> _State:
        found = self.states.get(id(tensor))
        if found is None:
            found = self.states[id(tensor)] = _State()
        return found

    def allocate(self, tensor: Tensor, backend: int) -> None:
        if tensor.buffer is not None or tensor.view is not None:
            return
        state = self.state(tensor)
        if state.allocated:
            return
        state.allocated = True
        if tensor.op in IN_PLACE and self._over_an_operand(tensor, state):
            return
        state.backend = backend
        state.address = self.arenas[backend].take(self.kinds[backend].size(tensor))

    def _over_an_operand(self, tensor: Tensor, state: _State) -> bool:
        for operand in tensor.src:
            theirs = self.state(operand)
            # A view never counts as allocated, so that no operation writes over its operand through a reshape.
            if not theirs.allocated or operand.is_output or not _same_layout(tensor, operand):
                continue
            if theirs.children == 1 and not theirs.views:
                state.backend, state.address = theirs.backend, theirs.address
                theirs.allocated = False
                kind = self.kinds[theirs.backend]
                had, used = kind.size(operand), kind.size(tensor)
                if had > used:
                    self.arenas[theirs.backend].give(theirs.address + used, had - used)
                return True
        return False

    def count(self, node: Tensor, backend: int) -> None:
        """The readers and the views of what a node reads; inputs have their place before anything is computed."""
        if node.view is not None and node.op != "NONE":
            self.state(node.view).views += 1
        if node.is_input:
            self.allocate(node, backend)
        for operand in node.src:
            self.state(operand).children += 1
            if operand.is_input:
                self.allocate(operand, backend)

    def read(self, operand: Tensor) -> None:
        """One reader fewer: the last one gives the memory back."""
        state = self.state(operand)
        state.children -= 1
        if state.children or state.views:
            return
        if operand.view is None:
            if state.allocated:
                self.release(operand)
            return
        whole = self.state(operand.view)
        whole.views -= 1
        if not whole.views and not whole.children and whole.allocated:
            self.release(operand.view)

    def release(self, tensor: Tensor) -> None:
        if tensor.is_output:
            return
        state = self.state(tensor)
        self.arenas[state.backend].give(state.address, self.kinds[state.backend].size(tensor))
        state.allocated = False


def reserve(
    nodes: Sequence[Tensor],
    leaves: Sequence[Tensor],
    backends: tuple[Sequence[int], Sequence[int]],
    kinds: Sequence[BufferType],
) -> dict[str, int]:
    """Bytes of each backend's compute buffer, by the buffer type's name, for a graph in the scheduler's order.

    `backends` are the numbers of the backends of the nodes and of the leaves, `kinds` the buffer types of the backends.
    """
    run = _Run(kinds)
    for leaf, backend in zip(leaves, backends[1], strict=True):
        run.allocate(leaf, backend)
    for node, backend in zip(nodes, backends[0], strict=True):
        run.count(node, backend)
    for node, backend in zip(nodes, backends[0], strict=True):
        for operand in node.src:
            run.allocate(operand, backend)
        run.allocate(node, backend)
        for operand in node.src:
            run.read(operand)
    return {kind.name: arena.largest for kind, arena in zip(kinds, run.arenas, strict=True)}


def _same_layout(a: Tensor, b: Tensor) -> bool:
    return a.dtype is b.dtype and a.ne == b.ne and a.nb == b.nb
