"""The CUDA caching allocator of PyTorch, without a GPU: where every request goes, and how much is reserved for it.

PyTorch asks the driver for segments, cuts blocks from them, keeps freed blocks and merges neighbours. A program's
reserved memory is the sum of its segments. Each rule below names its function in c10/cuda/CUDACachingAllocator.cpp
(PyTorch 2.13; the same in all versions since 2.1 unless it says otherwise), and each has its test.

Addresses are made up: a new segment lies above all earlier ones. The driver's own choice is not known; it decides only
between free blocks of one size. Left out: memory pools of CUDA graphs, when other streams have read a block,
what the driver keeps for itself, and threads.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

from weigh.errors import UsageError
from weigh.trace.allocator_settings import INTERVALS, MIB, AllocatorSettings

MIN_BLOCK = 512
"""Sizes are multiples of it (kMinBlockSize)."""
SMALL = MIB
"""The largest request that goes to the small pool (kSmallSize)."""
SMALL_SEGMENT = 2 * MIB
"""What the small pool's segments have (kSmallBuffer)."""
MIN_LARGE = 10 * MIB
"""From here on a request has a segment of its own size (kMinLargeAlloc) ..."""
ROUND_LARGE = 2 * MIB
"""... in multiples of this (kRoundLarge)."""

_SHIFT = 60
_ADDRESS = (1 << _SHIFT) - 1
_ENDLESS = 1 << 46
"""The address space of an expandable segment on a device without limit."""


class DeviceFull(Exception):
    """What PyTorch reports as torch.OutOfMemoryError: no free block fits, and the device has no more."""


class Block:
    """A stretch of addresses: in use, free, or (in an expandable segment) with no memory behind it."""

    __slots__ = ("address", "after", "allocated", "before", "cached_at", "mapped", "pool", "size")

    def __init__(self, address: int, size: int, pool: Pool, mapped: bool = True) -> None:
        self.address = address
        self.size = size
        self.pool = pool
        self.mapped = mapped
        self.allocated = False
        self.before: Block | None = None
        self.after: Block | None = None
        self.cached_at = 0
        """How many searches the large pool had seen when this block became free."""


class Pool:
    """The free blocks of small, or of large requests of one stream."""

    __slots__ = ("blocks", "free", "page", "small", "stream", "unmapped")

    def __init__(self, small: bool, stream: int, page: int) -> None:
        self.small = small
        self.stream = stream
        self.page = page
        """How much memory an expandable segment gets at a time."""
        self.free: list[int] = []
        """Size and address of every free block in one number, in order (BlockComparatorSize)."""
        self.unmapped: list[int] = []
        """Addresses without memory, in order (BlockComparatorAddress)."""
        self.blocks: dict[int, Block] = {}
        """Both by address."""

    def keep(self, block: Block) -> None:
        """A block is free from now on, or has no memory any more."""
        self.blocks[block.address] = block
        if block.mapped:
            insort(self.free, block.size << _SHIFT | block.address)
        else:
            insort(self.unmapped, block.address)

    def take(self, block: Block) -> None:
        """It is so no longer."""
        del self.blocks[block.address]
        if block.mapped:
            del self.free[bisect_left(self.free, block.size << _SHIFT | block.address)]
        else:
            del self.unmapped[bisect_left(self.unmapped, block.address)]


class CachingAllocator:
    """The state of the allocator of one device.

    `capacity` is what the driver has for it, in bytes; None: without end.

    >>> allocator = CachingAllocator()
    >>> block = allocator.malloc(3_000_000)
    >>> block.size, allocator.allocated, allocator.reserved
    (3000320, 3000320, 20971520)
    """

    def __init__(self, settings: AllocatorSettings | None = None, capacity: int | None = None) -> None:
        settings = settings or AllocatorSettings()
        if settings.per_process_memory_fraction < 1 and capacity is None:
            raise UsageError("per_process_memory_fraction is a share of a device", hint="Say how large the device is.")
        self.capacity = capacity
        self.allocated = 0
        """Bytes in blocks that are in use: torch.cuda.memory_allocated()."""
        self.reserved = 0
        """Bytes in segments: torch.cuda.memory_reserved()."""
        self.retries = 0
        """How often everything cached was given back for a request: num_alloc_retries."""
        self.growth: list[tuple[int, int, Pool]] = []
        """Address and bytes of all that was got from the driver, and (negative) given back, in order."""
        self._expandable = settings.expandable_segments
        self._large_segment = settings.large_segment_size_mb * MIB
        self._max_split = None if settings.max_split_size_mb is None else settings.max_split_size_mb * MIB
        self._rounding = (settings.max_non_split_rounding_mb or settings.large_segment_size_mb) * MIB
        self._divisions = settings.roundup_power2_divisions if max(settings.roundup_power2_divisions) > 1 else None
        self._maximum: int | None = None
        if settings.per_process_memory_fraction < 1 and capacity is not None:
            self._maximum = int(settings.per_process_memory_fraction * capacity)
        self._collect_above: int | None = None
        if self._maximum is not None and settings.garbage_collection_threshold > 0:
            self._collect_above = int(settings.garbage_collection_threshold * self._maximum)
        self._searches = 0
        self._next_address = self._large_segment
        self._pools: dict[tuple[bool, int], Pool] = {}

    def malloc(self, num_bytes: int, stream: int = 0) -> Block:
        """A block for a request of at least one byte.

        Raises `DeviceFull` where the device has no room, even with all that is cached given back.
        """
        size = round_size(num_bytes, self._divisions)
        small = size <= SMALL
        pool = self._pools.get((small, stream)) or self._new_pool(small, stream)
        block = self._find(pool, size) or self._obtain(pool, size)
        rest = block.size - size
        if self._splits(pool, size, rest):
            remaining = Block(block.address + size, rest, pool)
            remaining.before, remaining.after = block, block.after
            if block.after is not None:
                block.after.before = remaining
            block.after = remaining
            block.size = size
            self._keep(remaining)
        block.allocated = True
        self.allocated += block.size
        return block

    def fill(self, sizes: Sequence[int], times: int) -> None:
        """These requests of at least one byte so many times over, none of which is ever freed.

        The counters are what as many calls of `malloc` make them (a test holds this), and so are the sizes of what is
        free; which of equal blocks are taken is not followed, and `growth` lacks the new segments.
        """
        if self.capacity is not None or self._expandable or self._max_split is not None:
            for size in (*sizes,) * times:
                self.malloc(size)
            return
        asked = [round_size(size, self._divisions) for size in sizes]
        for small in (True, False):
            chosen = [size for size in asked if (size <= SMALL) == small]
            if chosen:
                self._pack(self._pools.get((small, 0)) or self._new_pool(small, 0), chosen, times)

    def _pack(self, pool: Pool, sizes: Sequence[int], times: int) -> None:
        """`malloc` on sizes alone; where those of the free blocks are what they were, all that follows repeats."""
        free = [key >> _SHIFT for key in pool.free]
        blocks: list[Block | None] = [pool.blocks[key & _ADDRESS] for key in pool.free]
        seen: dict[tuple[int, ...], tuple[int, int, int]] = {}
        left = times
        while left:
            if tuple(free) in seen:
                before, allocated, reserved = seen[tuple(free)]
                rounds, left = divmod(left, before - left)
                self.allocated += rounds * (self.allocated - allocated)
                self.reserved += rounds * (self.reserved - reserved)
                seen.clear()
                continue
            seen[tuple(free)] = (left, self.allocated, self.reserved)
            left -= 1
            for size in sizes:
                at = bisect_left(free, size)
                if at < len(free):
                    found = free.pop(at)
                    del blocks[at]
                else:
                    found = segment_size(size, self._large_segment)
                    self.reserved += found
                rest = found - size
                if self._splits(pool, size, rest):
                    at = bisect_left(free, rest)
                    free.insert(at, rest)
                    blocks.insert(at, None)
                    found = size
                self.allocated += found
        pool.free.clear()
        pool.blocks.clear()
        for size, block in zip(free, blocks, strict=True):
            self._keep(block or self._left_over(size, pool))

    def _left_over(self, size: int, pool: Pool) -> Block:
        """A free block behind one that stays in use."""
        used = Block(self._next_address, MIN_BLOCK, pool)
        used.allocated = True
        block = Block(used.address + MIN_BLOCK, size, pool)
        block.before, used.after = used, block
        self._next_address += MIN_BLOCK + size
        return block

    def free(self, block: Block) -> None:
        """The block may be used again. Source: free."""
        self.release(block)
        self.reuse(block)

    def release(self, block: Block) -> None:
        """Its tensor is gone, but another stream may still read it (`record_stream`)."""
        self.allocated -= block.size

    def reuse(self, block: Block) -> None:
        """No stream needs it any more; free neighbours become one. Source: free_block."""
        block.allocated = False
        self._merge(block, block.before)
        self._merge(block, block.after)
        self._keep(block)

    def empty_cache(self) -> None:
        """Give back every segment, and every page of expandable segments, that is free. Source: release_blocks."""
        for pool in list(self._pools.values()):
            for block in [pool.blocks[key & _ADDRESS] for key in pool.free]:
                if self._expandable:
                    self._unmap(block)
                elif block.before is None and block.after is None:
                    self._release(block)

    # -- from the cache
    def _new_pool(self, small: bool, stream: int) -> Pool:
        pool = Pool(small, stream, SMALL_SEGMENT if small else self._large_segment)
        self._pools[small, stream] = pool
        return pool

    def _find(self, pool: Pool, size: int) -> Block | None:
        """The smallest free block that is large enough, the lowest of those. Source: get_free_block.

        The end of an expandable segment counts with all that it can grow to.
        """
        if not pool.small:
            self._searches += 1
        free = pool.free
        at = bisect_left(free, size << _SHIFT)
        if at == len(free):
            return None
        if self._expandable:
            reach = _reach(pool.blocks[free[at] & _ADDRESS])
            while at + 1 < len(free) and (other := _reach(pool.blocks[free[at + 1] & _ADDRESS])) < reach:
                at, reach = at + 1, other
        if self._max_split is not None:
            found = free[at] >> _SHIFT
            if size < self._max_split <= found or (size >= self._max_split and found >= size + self._rounding):
                return None
        return pool.blocks.pop(free.pop(at) & _ADDRESS)

    def _splits(self, pool: Pool, size: int, rest: int) -> bool:
        """Whether what a block has beyond the request becomes a block of its own. Source: should_split."""
        if pool.small or self._expandable:
            return rest >= MIN_BLOCK
        return rest > SMALL and (self._max_split is None or size < self._max_split)

    def _keep(self, block: Block) -> None:
        block.cached_at = self._searches
        block.pool.keep(block)

    def _merge(self, block: Block, other: Block | None) -> None:
        """Make a free neighbour part of a block. Source: try_merge_blocks."""
        if other is None or other.allocated or other.mapped != block.mapped:
            return
        block.pool.take(other)
        block.size += other.size
        if other is block.before:
            block.address, block.before = other.address, other.before
            if block.before is not None:
                block.before.after = block
        else:
            block.after = other.after
            if block.after is not None:
                block.after.before = block

    # -- from the driver
    def _obtain(self, pool: Pool, size: int) -> Block:
        """New memory; where there is none, first give back cached blocks. Source: malloc, after get_free_block."""
        self._collect_garbage()
        block = self._grow(pool, size)
        if block is None and self._release_oversize(pool, size):
            block = self._grow(pool, size)
        if block is None:
            self.empty_cache()
            self.retries += 1
            block = self._grow(pool, size)
        if block is None:
            raise DeviceFull
        return block

    def _grow(self, pool: Pool, size: int) -> Block | None:
        """A new segment, or more of an expandable one; None where the device is full. Source: alloc_block."""
        wanted = segment_size(size, self._large_segment)
        if self._maximum is not None and self.reserved + wanted > self._maximum:
            return None
        if self._expandable:
            return self._extend(pool, size)
        if not self._has(wanted):
            return None
        self._next_address += wanted
        return self._reserve(Block(self._next_address - wanted, wanted, pool), wanted)

    def _has(self, num_bytes: int) -> bool:
        return self.capacity is None or self.reserved + num_bytes <= self.capacity

    def _reserve(self, block: Block, num_bytes: int) -> Block:
        self.reserved += num_bytes
        self.growth.append((block.address, num_bytes, block.pool))
        return block

    def _release(self, block: Block) -> None:
        block.pool.take(block)
        self._reserve(block, -block.size)

    def _release_oversize(self, pool: Pool, size: int) -> bool:
        """Give back one unsplittable block that is large enough, else several, the largest first; whether that helps.

        Source: release_available_cached_blocks.
        """
        if self._max_split is None or self._expandable:
            return False
        wanted = max(size, self._max_split)
        at = bisect_left(pool.free, wanted << _SHIFT)
        if at < len(pool.free):
            self._release(pool.blocks[pool.free[at] & _ADDRESS])
            return True
        released = 0
        while pool.free and released < wanted and pool.free[-1] >> _SHIFT >= self._max_split:
            released += pool.free[-1] >> _SHIFT
            self._release(pool.blocks[pool.free[-1] & _ADDRESS])
        return released >= wanted

    def _collect_garbage(self) -> None:
        """Give back free large segments, those first that have lain free for long.

        Age is counted in requests. A round frees all that are at least as old as the average, even beyond the need.
        Source: garbage_collect_cached_blocks.
        """
        if self._collect_above is None or self.reserved <= self._collect_above or self._expandable:
            return
        pools = [p for p in self._pools.values() if not p.small]
        candidates = [b for p in pools for b in p.blocks.values() if b.before is None and b.after is None]
        target = self.reserved - self._collect_above
        released = 0
        while candidates and released < target:
            average = sum(self._searches - b.cached_at for b in candidates) / len(candidates)
            for block in [b for b in candidates if self._searches - b.cached_at >= average]:
                released += block.size
                candidates.remove(block)
                self._release(block)

    # -- expandable segments
    def _extend(self, pool: Pool, size: int) -> Block | None:
        """A block at the lowest address where there is room for it, with memory where it has none.

        Source: try_allocate_expandable_block. What was mapped before the device was full stays.
        """
        block = self._room(pool, size)
        if not block.mapped and not self._map(block, min(size, block.size)):
            return None
        while block.size < size:
            after = block.after
            assert after is not None
            if not self._map(after, min(size - block.size, after.size)):
                return None
            block = after
        pool.take(block)
        return block

    def _room(self, pool: Pool, size: int) -> Block:
        """Free or unmapped addresses in a row; else a new segment's. Source: find_expandable_block."""
        for address in pool.unmapped:
            block = pool.blocks[address]
            if block.before is not None and not block.before.allocated:
                block = block.before
            room, at = 0, block
            while room < size and not at.allocated:
                room += at.size
                if at.after is None:
                    break
                at = at.after
            if room >= size:
                return block
        # Source: ExpandableSegment: the addresses of the whole device and an eighth more.
        space = _ENDLESS if self.capacity is None else _round_up(self.capacity + self.capacity // 8, pool.page)
        start = _round_up(self._next_address, pool.page)
        self._next_address = start + space + pool.page
        block = Block(start, space, pool, mapped=False)
        pool.keep(block)
        return block

    def _map(self, block: Block, size: int) -> bool:
        """Put whole pages behind the first `size` bytes of a block that has none. Source: map_block."""
        pool, size = block.pool, _round_up(size, block.pool.page)
        if not self._has(size):
            return False
        pool.take(block)
        block.mapped = True
        if size < block.size:
            rest = Block(block.address + size, block.size - size, pool, mapped=False)
            _insert(rest, block, block.after)
            pool.keep(rest)
            block.size = size
        self._reserve(block, size)
        self._merge(block, block.before)
        self._merge(block, block.after)
        self._keep(block)
        return True

    def _unmap(self, block: Block) -> None:
        """Give back the whole pages of a free block; what is left at its ends stays. Source: unmap_block."""
        pool = block.pool
        start = _round_up(block.address, pool.page)
        stop = (block.address + block.size) // pool.page * pool.page
        if start >= stop:
            return
        pool.take(block)
        if start > block.address:
            rest = Block(block.address, start - block.address, pool)
            _insert(rest, block.before, block)
            self._keep(rest)
        if stop < block.address + block.size:
            rest = Block(stop, block.address + block.size - stop, pool)
            _insert(rest, block, block.after)
            self._keep(rest)
        block.address, block.size, block.mapped = start, stop - start, False
        self._reserve(block, -block.size)
        self._merge(block, block.before)
        self._merge(block, block.after)
        if block.before is not None or block.after is not None:  # else release_expandable_segment
            pool.keep(block)


def round_size(num_bytes: int, divisions: tuple[int, ...] | None = None) -> int:
    """What a request takes: a multiple of 512 bytes, or of a fraction of its power of two. Source: round_size.

    `divisions` as in `AllocatorSettings.roundup_power2_divisions`.

    >>> round_size(1), round_size(513), round_size(1200 * 1024, (4,) * 16)
    (512, 1024, 1310720)
    """
    if divisions is not None and num_bytes >= MIN_BLOCK:
        number = divisions[min(max(num_bytes.bit_length() - 1 - 20, 0), INTERVALS - 1)]
        if number > 1 and num_bytes > MIN_BLOCK * number:
            # Source: roundup_power2_next_division.
            return _round_up(num_bytes, (1 << (num_bytes.bit_length() - 1)) // number)
    return -(-num_bytes // MIN_BLOCK) * MIN_BLOCK


def segment_size(size: int, large_segment: int = 20 * MIB) -> int:
    """The segment that is asked from the driver for a block of `size` bytes. Source: get_allocation_size.

    >>> [segment_size(n) // MIB for n in (512, MIB + 512, 10 * MIB, 11 * MIB)]
    [2, 20, 10, 12]
    """
    if size <= SMALL:
        return SMALL_SEGMENT
    return large_segment if size < MIN_LARGE else _round_up(size, ROUND_LARGE)


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def _reach(block: Block) -> int:
    """A free block's size with the unmapped addresses behind it."""
    after = block.after
    return block.size + (after.size if after is not None and not after.mapped else 0)


def _insert(block: Block, before: Block | None, after: Block | None) -> None:
    block.before, block.after = before, after
    if before is not None:
        before.after = block
    if after is not None:
        after.before = block
