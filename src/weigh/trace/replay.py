"""A trace run through the CUDA caching allocator: what it reserves, how much of that lies idle, and where it runs out.

What a trace knows are the storages that PyTorch's tensors ask for. Left out, because it is not in a trace: what kernels
ask for inside themselves (cuBLAS workspaces are a few MiB for each handle and stream), the CUDA context, NCCL.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping

from weigh.records import dataclass, field
from weigh.trace.allocator import Block, CachingAllocator, DeviceFull
from weigh.trace.allocator_settings import AllocatorSettings
from weigh.trace.events import Allocation, Mark, Trace
from weigh.trace.expand import expand


@dataclass(frozen=True, slots=True)
class Streams:
    """On which CUDA streams storages are made, and how long their blocks wait for others."""

    of: Callable[[Allocation], int]
    """The number of a storage's stream; 0 is the one that computes."""
    waiting: Mapping[int, int] = field(default_factory=dict)
    """How many of a stream's blocks may have died and still be read by another stream when it asks for the next."""
    waits_after: tuple[str, ...] = ()
    """Phases after which the host waits for the device (it reads the loss), so that nothing is read any more."""


@dataclass(frozen=True, slots=True)
class PhaseReserve:
    """The peaks of one phase; what it finds at its start counts, as after torch.cuda.reset_peak_memory_stats()."""

    mark: Mark
    allocated: int
    """torch.cuda.max_memory_allocated()"""
    reserved: int
    """torch.cuda.max_memory_reserved()"""
    after: int
    """torch.cuda.memory_allocated() at its end: the bytes in blocks, with what each has beyond its request."""


@dataclass(frozen=True, slots=True)
class PlacedBlock:
    """A block in use: where it lies in its segment, and for what."""

    offset: int
    num_bytes: int
    """With what it has beyond the request."""
    allocation: Allocation


@dataclass(frozen=True, slots=True)
class Segment:
    """Memory from the driver, in one piece. What none of its blocks covers is free.

    An expandable segment counts as several where a part without memory divides it, as in torch.cuda.memory_snapshot().
    """

    address: int
    num_bytes: int
    small: bool
    """Of the pool for requests of at most 1 MiB."""
    stream: int
    blocks: tuple[PlacedBlock, ...]


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """The request that the device could not serve."""

    event: int
    """Its number in the expanded trace, from 0."""
    mark: Mark
    allocation: Allocation
    """What was asked for: bytes, op, path, purpose."""
    allocated: int
    reserved: int
    """What remained reserved after all that is cached had been given back."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What `replay` found; up to the out-of-memory, if there is one."""

    settings: AllocatorSettings
    capacity: int | None
    allocated: int
    """The peak of the bytes in blocks: max_memory_allocated()."""
    reserved: int
    """The peak of the bytes in segments: max_memory_reserved()."""
    phases: tuple[PhaseReserve, ...]
    event: int
    """The event of the expanded trace after which the reserved peak is first reached; -1 where nothing is reserved."""
    segments: tuple[Segment, ...]
    """The segments then, by address."""
    end_allocated: int
    """The bytes in blocks at the end, with what each has beyond its request: memory_allocated()."""
    end_reserved: int
    retries: int
    """How often everything cached was given back to serve a request; each time the device waits."""
    out_of_memory: OutOfMemory | None

    @property
    def in_use(self) -> int:
        """The bytes in blocks at the reserved peak."""
        return sum(block.num_bytes for segment in self.segments for block in segment.blocks)

    @property
    def idle(self) -> int:
        """The bytes reserved and in no block, at the reserved peak."""
        return self.reserved - self.in_use

    @property
    def fragmentation(self) -> float:
        """The share of the reserved peak that lies idle then."""
        return self.idle / self.reserved if self.reserved else 0.0


def replay(
    trace: Trace,
    settings: AllocatorSettings | None = None,
    capacity: int | None = None,
    streams: Streams | None = None,
) -> Replay:
    """Serve every allocation of a trace as the CUDA caching allocator would. Plain sizes only.

    `capacity` is what the driver has for the allocator: the device without context, libraries and other processes.
    Without `streams` all is made on one.
    """
    return _Run(expand(trace), settings or AllocatorSettings(), capacity, streams).result()


def placed(trace: Trace, settings: AllocatorSettings) -> Iterator[tuple[int | None, int, int]]:
    """Every event of an expanded trace with the address and the bytes of its block, and what is reserved in between.

    An event is as in `Trace.events`; None is a segment from the driver (bytes above zero) or back to it (below).
    """
    allocator = CachingAllocator(settings, None)
    blocks: dict[int, Block] = {}
    seen = 0
    for event in trace.events:
        size = _plain(trace.allocations[abs(event) - 1].num_bytes)
        if not size:
            continue
        if event < 0:
            block = blocks.pop(-event)
            yield event, block.address, block.size
            allocator.free(block)
        else:
            block = allocator.malloc(size)
            yield from ((None, address, num_bytes) for address, num_bytes, _ in allocator.growth[seen:])
            seen = len(allocator.growth)
            blocks[event] = block
            yield event, block.address, block.size


class _Run:
    """A replay under way."""

    def __init__(
        self,
        trace: Trace,
        settings: AllocatorSettings,
        capacity: int | None,
        streams: Streams | None,
    ) -> None:
        self.trace = trace
        self.settings = settings
        self.allocator = CachingAllocator(settings, capacity)
        self.sizes = [_plain(a.num_bytes) for a in trace.allocations]
        self.streams = [0 if streams is None else streams.of(a) for a in trace.allocations]
        self.waiting = {} if streams is None else streams.waiting
        self.waits_after = () if streams is None else streams.waits_after
        self.dead: dict[int, deque[Block]] = {stream: deque() for stream in self.waiting}
        """By stream, the blocks that are still waited for, the first to die first."""
        self.blocks: list[Block | None] = [None] * len(self.sizes)
        self.places: list[tuple[int, int]] = [(0, 0)] * len(self.sizes)
        """Address and size of the block that each allocation got."""
        self.reserved = self.grown = 0
        """The peak so far, and how much of the allocator's `growth` belongs to it."""
        self.event = -1
        self.out_of_memory: OutOfMemory | None = None

    def result(self) -> Replay:
        """Run through the phases."""
        phases = list(self._phases())
        return Replay(
            self.settings,
            self.allocator.capacity,
            max((p.allocated for p in phases), default=0),
            self.reserved,
            tuple(phases),
            self.event,
            tuple(self._segments()),
            self.allocator.allocated,
            self.allocator.reserved,
            self.allocator.retries,
            self.out_of_memory,
        )

    def _phases(self) -> Iterator[PhaseReserve]:
        stops = [*(mark.event for mark in self.trace.marks[1:]), len(self.trace.events)]
        for mark, stop in zip(self.trace.marks, stops, strict=True):
            yield self._phase(mark, stop)
            if self.out_of_memory is not None:
                return
            if mark.phase in self.waits_after:
                self._wait()

    def _phase(self, mark: Mark, stop: int) -> PhaseReserve:
        allocator, events, sizes, blocks = self.allocator, self.trace.events, self.sizes, self.blocks
        allocated, reserved = allocator.allocated, allocator.reserved
        for number in range(mark.event, stop):
            event = events[number]
            if event < 0:
                block = blocks[-event - 1]
                if block is not None:
                    self._free(block, self.streams[-event - 1])
                    blocks[-event - 1] = None
                continue
            index = event - 1
            if not sizes[index]:
                continue  # Source: NativeCachingAllocator::allocate asks for nothing then
            try:
                blocks[index] = block = self._malloc(sizes[index], self.streams[index])
            except DeviceFull:
                self.out_of_memory = OutOfMemory(
                    number, mark, self.trace.allocations[index], allocator.allocated, allocator.reserved
                )
                break
            self.places[index] = block.address, block.size
            if allocator.allocated > allocated:
                allocated = allocator.allocated
            if allocator.reserved > reserved:
                reserved = allocator.reserved
                if reserved > self.reserved:
                    self.reserved, self.event, self.grown = reserved, number, len(allocator.growth)
        return PhaseReserve(mark, allocated, reserved, allocator.allocated)

    def _free(self, block: Block, stream: int) -> None:
        if stream in self.dead:
            self.allocator.release(block)
            self.dead[stream].append(block)
        else:
            self.allocator.free(block)

    def _malloc(self, size: int, stream: int) -> Block:
        """Wait until no more than so many of the stream's blocks are read by others; for all, where memory is short."""
        if not self.dead:
            return self.allocator.malloc(size, stream)
        dead = self.dead.get(stream)
        while dead and len(dead) >= self.waiting[stream]:
            self.allocator.reuse(dead.popleft())
        try:
            return self.allocator.malloc(size, stream)
        except DeviceFull:  # Source: release_cached_blocks, synchronize_and_free_events
            self._wait()
            return self.allocator.malloc(size, stream)

    def _wait(self) -> None:
        for blocks in self.dead.values():
            while blocks:
                self.allocator.reuse(blocks.popleft())

    def _segments(self) -> Iterator[Segment]:
        """What was reserved after event `self.event`, with the blocks in use then."""
        pieces = self._pieces()
        live: dict[int, None] = {}
        for event in self.trace.events[: self.event + 1]:
            if event > 0:
                live[event - 1] = None
            else:
                del live[-event - 1]
        placed = sorted((*self.places[index], index) for index in live if self.sizes[index])
        at = 0
        for address, num_bytes, small, stream in pieces:
            blocks = []
            while at < len(placed) and placed[at][0] < address + num_bytes:
                place, size, index = placed[at]
                blocks.append(PlacedBlock(place - address, size, self.trace.allocations[index]))
                at += 1
            yield Segment(address, num_bytes, small, stream, tuple(blocks))

    def _pieces(self) -> list[tuple[int, int, bool, int]]:
        """Address, bytes, pool and stream of what was reserved then, in order; what lies side by side as one."""
        reserved: dict[int, tuple[int, bool, int]] = {}
        for address, num_bytes, pool in self.allocator.growth[: self.grown]:
            page = pool.page if self.settings.expandable_segments else abs(num_bytes)
            for start in range(address, address + abs(num_bytes), page):
                if num_bytes > 0:
                    reserved[start] = page, pool.small, pool.stream
                else:
                    del reserved[start]
        pieces: list[tuple[int, int, bool, int]] = []
        for start, (num_bytes, small, stream) in sorted(reserved.items()):
            if self.settings.expandable_segments and pieces and sum(pieces[-1][:2]) == start:
                pieces[-1] = pieces[-1][0], pieces[-1][1] + num_bytes, small, stream
            else:
                pieces.append((start, num_bytes, small, stream))
        return pieces


def _plain(size: object) -> int:
    if not isinstance(size, int):
        raise TypeError("a sweep cannot be replayed: run a single setting")
    return size
