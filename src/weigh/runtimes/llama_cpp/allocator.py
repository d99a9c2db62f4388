"""GGML's graph allocator: where each tensor of a graph would lie, and so how large a compute buffer is.

Read: `ggml/src/ggml-alloc.c` (`ggml_gallocr_reserve_n`, `ggml_dyn_tallocr_alloc`), alike in its decisions from 2024 to
2026. A node takes the memory of an operand that nobody else needs where its operation may write in place, else the
free block that fits best, else the end of the buffer, which grows; an operand's memory is free after its last reader.
Who lives how long follows from the graph alone (`lives`); where it lies, from the sizes (`Lives.largest`). Buffers of
more than one chunk (devices that cannot allocate so much at once) are left out.
"""

from __future__ import annotations

from operator import mul
from typing import TYPE_CHECKING, NamedTuple

from weigh import dtypes
from weigh.runtimes.llama_cpp.ggml import IN_PLACE, row
from weigh.runtimes.llama_cpp.unknowns import Polynomial, polynomial, value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from weigh.runtimes.llama_cpp.ggml import Tensor
    from weigh.runtimes.llama_cpp.stack import Block, Stack
    from weigh.sources.checkpoint import StoredTensor


class BufferType(NamedTuple):
    """What a backend's memory is handed out as."""

    name: str
    """As llama.cpp prints it: "CUDA0", "CUDA_Host", "CPU"."""
    alignment: int
    row_padding: int = 0
    """Elements that rows of quantized matrices are made a multiple of (CUDA's `MATRIX_ROW_PADDING`)."""

    def size(self, tensor: Tensor) -> int:
        """Bytes that a tensor takes, before they are aligned."""
        found = tensor.num_bytes
        if self.row_padding and tensor.dtype.kind == "block" and tensor.ne[0] % self.row_padding:
            found += row(tensor.dtype, self.row_padding - tensor.ne[0] % self.row_padding)
        return found


def padded(stored: StoredTensor, alignment: int, row_padding: int) -> int:
    """Bytes of a tensor in a buffer that aligns tensors and pads the rows of quantized ones."""
    found = stored.num_bytes
    if row_padding and stored.shape[-1] % row_padding:
        dtype = dtypes.get(stored.dtype)
        if dtype.kind == "block":
            found += dtype.num_bytes(row_padding - stored.shape[-1] % row_padding)
    return -(-found // alignment) * alignment


class Arena:
    """One buffer: free blocks by address, the last of which has no end."""

    def __init__(self) -> None:
        self.free: list[list[int]] = [[0, 2**62]]
        self.largest = 0
        """Bytes up to the highest address that was ever in use."""
        self.choices: list[int] = []
        """What was decided by comparing sizes: which blocks are large enough, which fits best, what grows."""

    def take(self, size: int) -> int:
        """An address: the block that fits best, the end of the buffer where none does."""
        free, best, best_size, enough = self.free, 0, 2**63, 0
        for index, (_, length) in enumerate(free):
            if size <= length:
                enough += 1 << index
                if length <= best_size:
                    best, best_size = index, length
        block = free[best]
        address = block[0]
        block[0] = end = address + size
        block[1] -= size
        if not block[1]:
            del free[best]
            best += 1 << 32
        if end > self.largest:
            self.largest = end
            best += 1 << 33
        self.choices += (enough, best)
        return address

    def give(self, address: int, size: int) -> None:
        """Bytes that are free again."""
        free, end, choices = self.free, address + size, self.choices
        for index, block in enumerate(free):
            start = block[0]
            if start >= end:
                if start == end:
                    choices.append(3 * index)
                    block[0], block[1] = address, block[1] + size
                else:
                    choices.append(3 * index + 1)
                    free.insert(index, [address, size])
                return
            if start + block[1] == address:
                choices.append(3 * index + 2)
                block[1] += size
                if index + 1 < len(free) and end == free[index + 1][0]:
                    choices.append(-1)
                    block[1] += free[index + 1][1]
                    del free[index + 1]
                return
        free.append([address, size])


class Lives:
    """What is put into one buffer and taken out of it again, layer by layer, and how large it is."""

    def __init__(self, kind: BufferType) -> None:
        self.kind = kind
        self.layers: list[list[int]] = [[]]
        """Of what comes before the layers, and of each layer: a slot where it is taken, its complement where given."""
        self.sizes: list[int] = []
        """Bytes of each slot."""
        self.taken: list[int] = []
        """The layer that took each slot, and the one that gave it back; -1 is before them."""
        self.given: list[int] = []
        self.early: set[int] = set()
        """Layers for which something is there longer than since the layer before them."""
        self.weights: dict[int, str] = {}
        """The names of weights of which slots are copies."""
        self.copied: dict[int, list[list[tuple[int, int]]]] = {}
        """Of blocks by number, each time that they are played: slots of copies, and their bytes."""
        self.twin = self
        """Another that is as large, whatever the sizes."""
        self._times: list[int] | None = None
        self._polynomials: tuple[list[Polynomial], list[int]] | None = None

    def take(self, tensor: Tensor, layer: int) -> None:
        """A slot for a tensor."""
        slot = len(self.sizes)
        tensor.slot = self, slot
        self.sizes.append(self.kind.size(tensor))
        self.taken.append(layer)
        self.given.append(2**30)
        self.layers[layer + 1].append(slot)
        if layer < tensor.wanted - 1:
            self.early.add(tensor.wanted)
        if tensor.name.startswith("blk."):
            self.weights[slot] = tensor.name

    def give(self, slot: int, layer: int) -> None:
        """It is free again."""
        self.given[slot] = layer
        self.layers[layer + 1].append(~slot)

    def handed_on(self, block: range, to: range) -> list[int]:
        """Slots that a block of layers takes and the next gives back."""
        return [n for layer in block for n in self.layers[layer + 1] if n >= 0 and self.given[n] in to]

    def is_steady(self, blocks: Sequence[Block]) -> bool:
        """What is left out may be played again: it reaches no further than to the blocks beside it."""
        for index, (layers, more) in enumerate(blocks):
            if more:
                first, last = blocks[index - 1].layers.start, blocks[index + 1].layers.stop
                events = [event for layer in layers for event in self.layers[layer + 1]]
                if not all(self.given[n] < last if n >= 0 else self.taken[~n] >= first for n in events):
                    return False
                before, after = blocks[index - 1].layers, blocks[index + 1].layers
                odd = len(self.handed_on(before, layers)) != len(self.handed_on(layers, after))
                if odd or not self.early.isdisjoint(layers):
                    return False
        return True

    def bytes_at(self, at: tuple[int, ...]) -> list[int]:
        """Of each slot, aligned, where the unknowns' products are `at`."""
        if self._polynomials is None:
            numbers: dict[int, int] = {}
            which = [numbers.setdefault(size, len(numbers)) for size in self.sizes]
            self._polynomials = [polynomial(size) for size in numbers], which
        alignment = self.kind.alignment
        different = [-(-value(size, at) // alignment) * alignment for size in self._polynomials[0]]
        return [different[number] for number in self._polynomials[1]]

    def history(self, blocks: Sequence[Block]) -> object:
        """What its size follows from, whichever buffer it is: devices with alike layers have the same."""
        played = [([self.layers[0]], 0), *(([self.layers[n + 1] for n in layers], more) for layers, more in blocks)]
        events = tuple((tuple(map(tuple, part)), more) for part, more in played if any(part))
        return self.kind.alignment, tuple(self.sizes), events, str(self.copied)

    def at_most(self, at: tuple[int, ...], blocks: Sequence[Block]) -> int:
        """More bytes than the buffer can have: all that is ever taken, if nothing were given back."""
        if self._times is None:
            times = [1] * (len(self.layers) - 1)
            for layers, more in blocks:
                for layer in layers:
                    times[layer] += more
            self._times = [1 if layer < 0 else times[layer] for layer in self.taken]
        kept: int = sum(map(mul, self.bytes_at(at), self._times))
        return kept + sum(size for copied in self.copied.values() for one in copied for _, size in one)

    def largest(self, at: tuple[int, ...], blocks: Sequence[Block]) -> tuple[int, tuple[int, ...]]:
        """Bytes of the buffer, and the choices that led there.

        Every choice compares sums of sizes. Where one unknown grows, and the others stay, sums grow evenly: if the
        choices are the same at two of its values they are the same between them, and the buffer grows evenly too.
        """
        game = _Game(self, self.bytes_at(at))
        game.play(range(-1, 0))
        for index, (layers, more) in enumerate(blocks):
            copied = self.copied.get(index) or [[]] * (more + 1)
            game.play(layers, copied[0])
            if more and any(self.layers[layer + 1] for layer in layers):
                before = self.handed_on(blocks[index - 1].layers, layers)
                after = self.handed_on(layers, blocks[index + 1].layers)
                game.repeat(layers, copied, list(zip(before, after, strict=True)))
        return game.arena.largest, tuple(game.arena.choices)

    def size_copies(self, stack: Stack, weights: Mapping[str, StoredTensor]) -> None:
        """How large the copies of weights are, each time that a block is played: their formats differ by layer."""
        place_of = {layer: place for place, layer in enumerate(stack.built)}
        padding = self.kind.row_padding
        for index, (layers, more) in enumerate(stack.blocks):
            names = []
            for place in layers:
                for slot in self.layers[place + 1]:
                    if more and slot in self.weights:
                        _, layer, stem = self.weights[slot].split(".", 2)
                        names.append((slot, stack.built[place] + place_of[int(layer)] - place, stem))
            if names:
                self.copied[index] = [
                    [
                        (
                            slot,
                            padded(weights[f"blk.{layer + time * len(layers)}.{stem}"], self.kind.alignment, padding),
                        )
                        for slot, layer, stem in names
                    ]
                    for time in range(more + 1)
                ]


class _Game:
    """A buffer as its slots are taken and given back."""

    def __init__(self, lives: Lives, sizes: list[int]) -> None:
        self.arena = Arena()
        self._layers, self._sizes = lives.layers, sizes
        self._where = [0] * len(sizes)

    def play(self, layers: range, copied: Sequence[tuple[int, int]] = ()) -> None:
        """Layers, in which copies are so large."""
        where, sizes, take, give = self._where, self._sizes, self.arena.take, self.arena.give
        for slot, size in copied:
            sizes[slot] = size
        for layer in layers:
            for event in self._layers[layer + 1]:
                if event >= 0:
                    where[event] = take(sizes[event])
                else:
                    give(where[~event], sizes[~event])

    def repeat(self, layers: range, copied: Sequence[Sequence[tuple[int, int]]], handed: list[tuple[int, int]]) -> None:
        """Layers that were played once, as often as there are lists of copies.

        As soon as the buffer looks as it did after an earlier time, and copies are as large as they were then, what
        follows is known. `handed` has the slots that they find, and those that they leave in their place.
        """
        where, sizes, seen, time = self._where, self._sizes, dict[object, int](), 1
        while time < len(copied):
            state = (*map(tuple, self.arena.free), *(where[slot] for _, slot in handed))
            if state in seen:
                cycle = time - seen[state]
                while time + cycle <= len(copied) and copied[time : time + cycle] == copied[time - cycle : time]:
                    time += cycle
                seen.clear()
                continue
            seen[state] = time
            for slot, last in handed:
                where[slot], sizes[slot] = where[last], sizes[last]
            self.play(layers, copied[time])
            time += 1


class _Run:
    def __init__(self, kinds: Sequence[BufferType], layers: int) -> None:
        found = {kind: Lives(kind) for kind in kinds}
        self.of_backend = [found[kind] for kind in kinds]
        for one in found.values():
            one.layers += ([] for _ in range(layers))
        self.layer = -1

    def allocate(self, tensor: Tensor) -> None:
        if tensor.buffer is not None or tensor.view is not None or tensor.slot is not None:
            return
        if tensor.op in IN_PLACE:
            for operand in tensor.src:
                # A view never counts as allocated, so that no operation writes over its operand through a reshape.
                if (
                    operand.slot is not None
                    and operand.children == 1
                    and not operand.views
                    and not operand.is_output
                    and tensor.ne == operand.ne
                    and tensor.nb == operand.nb
                    and tensor.dtype is operand.dtype
                ):
                    tensor.slot, operand.slot = operand.slot, None
                    return
        self.of_backend[tensor.on].take(tensor, self.layer)

    def count(self, node: Tensor) -> None:
        """The readers and the views of what a node reads; inputs have their place before anything is computed."""
        if node.view is not None and node.op != "NONE":
            node.view.views += 1
        if node.is_input:
            self.allocate(node)
        for operand in node.src:
            operand.children += 1
            if operand.is_input:
                self.allocate(operand)

    def read(self, operand: Tensor) -> None:
        """One reader fewer: the last one gives the memory back."""
        operand.children -= 1
        if operand.children or operand.views:
            return
        whole = operand.view
        if whole is None:
            if operand.slot is not None:
                self.release(operand)
            return
        whole.views -= 1
        if not whole.views and not whole.children and whole.slot is not None:
            self.release(whole)

    def release(self, tensor: Tensor) -> None:
        if not tensor.is_output:
            assert tensor.slot is not None
            lives, slot = tensor.slot
            lives.give(slot, self.layer)
            tensor.slot = None


def lives(nodes: Sequence[Tensor], leaves: Sequence[Tensor], kinds: Sequence[BufferType], layers: int) -> list[Lives]:
    """What each buffer holds when, for a graph of so many layers in the scheduler's order.

    `kinds` are the buffer types of the backends, of which `Tensor.on` is a number.
    """
    run = _Run(kinds, layers)
    for leaf in leaves:
        run.allocate(leaf)
    for node in nodes:
        run.count(node)
    for node in nodes:
        run.layer = node.layer
        for operand in node.src:
            run.allocate(operand)
        run.allocate(node)
        for operand in node.src:
            run.read(operand)
    return list(dict.fromkeys(run.of_backend))
