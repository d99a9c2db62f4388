"""The rules of CUDACachingAllocator.cpp one by one; each test's docstring names the function that it is taken from."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weigh.errors import UsageError
from weigh.trace.allocator import Block, CachingAllocator, DeviceFull, round_size, segment_size
from weigh.trace.allocator_settings import MIB, AllocatorSettings

KIB = 1024


def allocator(text: str = "", capacity: int | None = None) -> CachingAllocator:
    return CachingAllocator(AllocatorSettings.parse(text), capacity)


@pytest.mark.parametrize(("asked", "size"), [(1, 512), (512, 512), (513, 1024), (MIB + 1, MIB + 512)])
def test_sizes_are_multiples_of_512(asked: int, size: int) -> None:
    """round_size"""
    assert round_size(asked) == allocator().malloc(asked).size == size


@pytest.mark.parametrize(("asked", "size"), [(1200, 1280), (1024, 1024), (1025, 1280), (1793, 2048)])
def test_sizes_are_rounded_to_divisions_of_a_power_of_two(asked: int, size: int) -> None:
    """roundup_power2_next_division, with the example of its comment: 1200 between 1024 and 2048, in four"""
    assert round_size(asked * KIB, (4,) * 16) == size * KIB


def test_divisions_hold_from_512_bytes_each() -> None:
    """round_size: only sizes above 512 * divisions"""
    assert round_size(2048 - 1, (4,) * 16) == 2048
    assert round_size(2048 + 1, (4,) * 16) == 2560
    assert round_size(100, (4,) * 16) == 512
    assert round_size(3 * MIB + 1, (1,) * 16) == round_size(3 * MIB + 1)


def test_divisions_differ_by_interval() -> None:
    """AllocatorConfig.cpp, roundup_power2_divisions: intervals begin at powers of two MiB"""
    text = "roundup_power2_divisions:[4:2,>:8]"
    assert allocator(text).malloc(4 * MIB + 1).size == 6 * MIB
    assert allocator(text).malloc(8 * MIB + 1).size == 9 * MIB


@pytest.mark.parametrize(
    ("asked", "segment"),
    [(1, 2), (MIB, 2), (MIB + 1, 20), (10 * MIB - 1, 20 - 10), (10 * MIB, 10), (10 * MIB + 1, 12), (100 * MIB, 100)],
)
def test_segments(asked: int, segment: int) -> None:
    """get_allocation_size: 2 MiB for the small, 20 MiB from 1 to 10 MiB, else rounded up to 2 MiB"""
    assert segment_size(round_size(asked)) == segment * MIB
    first = allocator()
    first.malloc(asked)
    assert first.reserved == segment * MIB


def test_a_large_segment_can_be_set() -> None:
    """get_allocation_size: large_segment_size_mb"""
    one = allocator("large_segment_size_mb:64")
    one.malloc(2 * MIB)
    assert one.reserved == 64 * MIB


def test_small_and_large_requests_have_their_own_segments() -> None:
    """get_pool: up to 1 MiB is small"""
    one = allocator()
    large = one.malloc(2 * MIB)
    one.free(large)
    one.malloc(MIB)
    assert one.reserved == 22 * MIB


def test_streams_have_their_own_segments() -> None:
    """get_free_block: a block of another stream does not serve"""
    one = allocator()
    one.free(one.malloc(5 * MIB, stream=0))
    one.malloc(5 * MIB, stream=1)
    assert one.reserved == 40 * MIB


def test_small_blocks_are_split_down_to_512_bytes() -> None:
    """should_split: small, remaining >= 512"""
    one = allocator()
    blocks = [one.malloc(512) for _ in range(4096)]
    assert one.reserved == 2 * MIB
    assert one.allocated == 2 * MIB
    assert len({b.address for b in blocks}) == 4096


def test_large_blocks_are_split_where_more_than_a_mebibyte_remains() -> None:
    """should_split: large, remaining > 1 MiB"""
    assert allocator().malloc(19 * MIB).size == 20 * MIB  # 20 MiB by rounding, exactly 1 MiB more than asked for
    two = allocator()
    assert two.malloc(9 * MIB).size == 9 * MIB
    assert two.malloc(10 * MIB).size == 11 * MIB  # the rest of the first segment
    assert two.reserved == 20 * MIB


def test_the_smallest_block_that_fits_is_taken_and_the_lowest_of_those() -> None:
    """get_free_block: lower_bound by size, then address (BlockComparatorSize)"""
    one = allocator()
    blocks = [one.malloc(n * MIB) for n in (40, 30, 60, 30)]
    for block in reversed(blocks):
        one.free(block)
    addresses = [b.address for b in blocks]
    assert one.malloc(25 * MIB).address == addresses[1]
    assert one.malloc(25 * MIB).address == addresses[3]
    assert one.malloc(25 * MIB).address == addresses[0]


def test_neighbours_are_merged_when_freed() -> None:
    """free_block and try_merge_blocks"""
    one = allocator()
    a, b, c = (one.malloc(6 * MIB) for _ in range(3))
    one.free(a)
    one.free(c)
    one.malloc(12 * MIB)  # fits into neither side of b
    assert one.reserved == 32 * MIB
    one.free(b)
    assert one.malloc(20 * MIB).address == a.address
    assert one.reserved == 32 * MIB


def test_segments_are_not_merged() -> None:
    """try_merge_blocks: neighbours are of one segment"""
    one = allocator()
    for block in [one.malloc(10 * MIB), one.malloc(10 * MIB)]:
        one.free(block)
    one.malloc(20 * MIB)
    assert one.reserved == 40 * MIB


def test_a_full_device_gets_all_that_is_cached_back() -> None:
    """malloc: alloc_block, release_cached_blocks, alloc_block again"""
    one = allocator(capacity=100 * MIB)
    one.free(one.malloc(60 * MIB))
    one.malloc(80 * MIB)
    assert (one.reserved, one.retries) == (80 * MIB, 1)


def test_a_segment_in_use_is_not_given_back() -> None:
    """release_blocks: only blocks that are a whole segment"""
    one = allocator(capacity=40 * MIB)
    a, b = one.malloc(5 * MIB), one.malloc(5 * MIB)
    one.free(a)
    with pytest.raises(DeviceFull):
        one.malloc(30 * MIB)
    assert one.reserved == 20 * MIB
    one.free(b)
    one.malloc(30 * MIB)
    assert one.reserved == 30 * MIB


def test_a_request_larger_than_the_device_is_refused() -> None:
    """malloc: torch.OutOfMemoryError"""
    with pytest.raises(DeviceFull):
        allocator(capacity=10 * MIB).malloc(11 * MIB)


def test_empty_cache() -> None:
    """emptyCache"""
    one = allocator()
    one.free(one.malloc(5 * MIB))
    keeper = one.malloc(100)
    one.empty_cache()
    assert one.reserved == 2 * MIB
    one.free(keeper)
    one.empty_cache()
    assert one.reserved == 0


# -- max_split_size_mb


def test_a_block_beyond_the_split_size_serves_no_smaller_request() -> None:
    """get_free_block: no oversize block for a request below max_split_size"""
    one = allocator("max_split_size_mb:40")
    one.free(one.malloc(40 * MIB))
    one.malloc(30 * MIB)
    assert one.reserved == 70 * MIB


def test_a_block_beyond_the_split_size_serves_what_is_almost_as_large_and_is_not_split() -> None:
    """get_free_block: less than 20 MiB more than asked for; should_split"""
    one = allocator("max_split_size_mb:40")
    block = one.malloc(60 * MIB)
    one.free(block)
    assert one.malloc(40 * MIB + 1).size == 60 * MIB
    two = allocator("max_split_size_mb:40")
    two.free(two.malloc(60 * MIB))
    two.malloc(40 * MIB)
    assert two.reserved == 100 * MIB  # exactly 20 MiB more: too much
    three = allocator("max_split_size_mb:40,max_non_split_rounding_mb:21")
    three.free(three.malloc(60 * MIB))
    three.malloc(40 * MIB)
    assert three.reserved == 60 * MIB


def test_one_large_enough_oversize_block_is_given_back_first() -> None:
    """release_available_cached_blocks: the smallest that is large enough, and nothing else"""
    one = allocator("max_split_size_mb:40", capacity=300 * MIB)
    for block in [one.malloc(n * MIB) for n in (20, 80, 150)]:
        one.free(block)
    one.malloc(60 * MIB)
    assert (one.reserved, one.retries) == ((20 + 150 + 60) * MIB, 0)


def test_several_oversize_blocks_are_given_back_the_largest_first() -> None:
    """release_available_cached_blocks: until the request's size is reached"""
    one = allocator("max_split_size_mb:40", capacity=300 * MIB)
    for block in [one.malloc(n * MIB) for n in (20, 50, 60, 100)]:
        one.free(block)
    one.malloc(160 * MIB)
    assert (one.reserved, one.retries) == ((20 + 50 + 160) * MIB, 0)


def test_where_oversize_blocks_are_not_enough_all_that_is_cached_goes() -> None:
    """release_available_cached_blocks: less than the request is no success, even if the device has the rest"""
    one = allocator("max_split_size_mb:40", capacity=250 * MIB)
    kept, *cached = (one.malloc(n * MIB) for n in (60, 20, 50))
    for block in cached:
        one.free(block)
    one.malloc(150 * MIB)
    assert (one.reserved, one.retries) == ((60 + 150) * MIB, 1)
    assert kept.allocated


# -- per_process_memory_fraction and garbage_collection_threshold


def test_a_fraction_of_the_device() -> None:
    """setMemoryFraction and alloc_block: reserved + the segment may not pass the allowed maximum"""
    one = allocator("per_process_memory_fraction:0.5", capacity=100 * MIB)
    one.malloc(40 * MIB)
    with pytest.raises(DeviceFull):
        one.malloc(2 * MIB)  # would reserve 20
    assert one.malloc(10 * MIB).size == 10 * MIB
    with pytest.raises(UsageError):
        allocator("per_process_memory_fraction:0.5")


def test_old_free_segments_are_given_back_above_the_threshold() -> None:
    """garbage_collect_cached_blocks: those at least as old as the average; age counts searches of the large pool"""
    one = allocator("garbage_collection_threshold:0.5,per_process_memory_fraction:0.9", capacity=1000 * MIB)
    old, young, other, _ = (one.malloc(n * MIB) for n in (200, 100, 40, 180))
    one.free(old)
    for _ in range(3):
        one.free(other)
        other = one.malloc(40 * MIB)
    one.free(young)
    assert one.reserved == 520 * MIB  # the threshold is at 450
    one.malloc(300 * MIB)
    assert (one.reserved, one.retries) == ((520 - 200 + 300) * MIB, 0)


def test_all_of_an_age_are_given_back_even_beyond_the_need() -> None:
    """garbage_collect_cached_blocks: does not stop at the target"""
    one = allocator("garbage_collection_threshold:0.5,per_process_memory_fraction:0.9", capacity=1000 * MIB)
    one.malloc(100)
    for block in [one.malloc(n * MIB) for n in (160, 170, 180)]:
        one.free(block)
        one.malloc(100)  # served from its pool: collects nothing, and makes no large block older
    one.malloc(200 * MIB)
    assert one.reserved == 202 * MIB


@pytest.mark.parametrize(
    "text", ["garbage_collection_threshold:0.5", "garbage_collection_threshold:0.8,per_process_memory_fraction:0.9"]
)
def test_nothing_is_collected_below_the_threshold_or_without_a_maximum(text: str) -> None:
    """malloc: only where allowed_memory_maximum is set"""
    one = allocator(text, capacity=1000 * MIB)
    one.free(one.malloc(600 * MIB))
    one.free(one.malloc(20 * MIB))
    one.malloc(200 * MIB)
    one.malloc(200 * MIB)
    one.malloc(201 * MIB)
    assert one.reserved == (600 + 202) * MIB


# -- expandable_segments


def test_an_expandable_segment_grows_by_pages() -> None:
    """ExpandableSegment::map: 20 MiB at a time for large, 2 MiB for small requests"""
    one = allocator("expandable_segments:True")
    blocks = [one.malloc(4 * MIB) for _ in range(5)]
    assert one.reserved == 20 * MIB
    blocks.append(one.malloc(4 * MIB))
    assert one.reserved == 40 * MIB
    blocks.append(one.malloc(30 * MIB))  # 16 MiB are left, 14 missing
    assert one.reserved == 60 * MIB
    assert [b.address for b in blocks] == sorted(b.address for b in blocks)
    assert blocks[-1].address == blocks[-2].address + 4 * MIB
    one.malloc(100)
    assert one.reserved == 62 * MIB


def test_expandable_blocks_are_split_down_to_512_bytes() -> None:
    """should_split: as small ones"""
    one = allocator("expandable_segments:True")
    assert one.malloc(20 * MIB - 512).size == 20 * MIB - 512
    assert one.malloc(2 * MIB).size == 2 * MIB


def test_the_end_of_an_expandable_segment_is_the_last_choice() -> None:
    """get_free_block: its size counts with what it can grow to"""
    one = allocator("expandable_segments:True")
    hole = one.malloc(15 * MIB)
    one.malloc(17 * MIB)
    assert one.reserved == 40 * MIB  # 8 MiB left at the end
    one.free(hole)
    assert one.malloc(5 * MIB).address == hole.address
    one.malloc(10 * MIB)
    assert one.malloc(6 * MIB).address > hole.address + 15 * MIB


def test_pages_without_use_are_given_back_where_the_device_is_full() -> None:
    """unmap_block: whole pages only; then alloc_block again, at the lowest addresses with room"""
    one = allocator("expandable_segments:True", capacity=100 * MIB)
    a, b, c = one.malloc(30 * MIB), one.malloc(30 * MIB), one.malloc(30 * MIB)
    assert one.reserved == 100 * MIB
    one.free(b)  # pages 2 of 5 lie in it wholly: 40 to 60
    assert one.malloc(500).size == 512
    assert (one.reserved, one.retries) == (82 * MIB, 1)
    one.free(c)  # 60 to 90, beside the last ten: with the 10 below 40, room for 70, of which 50 have memory
    assert one.malloc(45 * MIB).address == a.address + 30 * MIB
    assert (one.reserved, one.retries) == (82 * MIB, 2)


def test_an_expandable_segment_without_use_vanishes() -> None:
    """release_blocks: release_expandable_segment"""
    one = allocator("expandable_segments:True", capacity=100 * MIB)
    one.free(one.malloc(90 * MIB))
    one.empty_cache()
    assert one.reserved == 0
    one.malloc(100 * MIB)
    assert one.reserved == 100 * MIB


def test_an_expandable_segment_has_the_addresses_of_a_device_and_an_eighth() -> None:
    """ExpandableSegment: its addresses; find_expandable_block makes another segment where they do not suffice"""
    one = allocator("expandable_segments:True", capacity=160 * MIB)  # 180 MiB of addresses
    a, _, c, _ = (one.malloc(n * MIB) for n in (40, 20, 40, 60))
    one.free(a)
    one.free(c)
    assert one.malloc(70 * MIB).address >= a.address + 180 * MIB  # there is memory for it, in no place of the first
    assert (one.reserved, one.retries) == (160 * MIB, 1)


def test_pools_and_streams_have_their_own_expandable_segments() -> None:
    """find_expandable_block: unmapped addresses of the same pool and stream"""
    one = allocator("expandable_segments:True")
    for stream in (0, 1):
        one.malloc(100, stream)
        one.malloc(2 * MIB, stream)
    assert one.reserved == 44 * MIB


# -- whatever comes

requests = st.one_of(st.integers(1, 4 * KIB), st.integers(1, 30 * MIB), st.integers(1, 120).map(lambda n: n * MIB))
confs = st.sampled_from(
    [
        "",
        "expandable_segments:True",
        "max_split_size_mb:32",
        "roundup_power2_divisions:4",
        "garbage_collection_threshold:0.4,per_process_memory_fraction:0.9",
        "expandable_segments:True,per_process_memory_fraction:0.8",
    ]
)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.booleans(), requests, st.integers(0, 1), st.integers(0, 10**6)), max_size=60), confs)
def test_blocks_lie_apart_in_reserved_memory_and_all_of_it_comes_back(
    steps: list[tuple[bool, int, int, int]], text: str
) -> None:
    one = allocator(text, capacity=500 * MIB)
    live: list[Block] = []
    for frees, num_bytes, stream, pick in steps:
        if frees and live:
            one.free(live.pop(pick % len(live)))
        else:
            try:
                block = one.malloc(num_bytes, stream)
            except DeviceFull:
                continue
            assert block.size >= num_bytes
            live.append(block)
        check(one, live)
    for block in live:
        one.free(block)
    assert one.allocated == 0
    one.empty_cache()
    assert one.reserved == 0
    assert sum(num_bytes for _, num_bytes, _ in one.growth) == 0


def check(one: CachingAllocator, live: list[Block]) -> None:
    pools = list(one._pools.values())
    free = [p.blocks[key & ((1 << 60) - 1)] for p in pools for key in p.free]
    assert one.allocated == sum(b.size for b in live)
    assert one.reserved == one.allocated + sum(b.size for b in free) <= 500 * MIB
    ends = [(b.address, b.address + b.size) for b in sorted([*live, *free], key=lambda b: b.address)]
    assert all(stop <= start for (_, stop), (start, _) in pairwise(ends))
    for block in free:  # no two free neighbours
        assert block.after is None or block.after.allocated or not block.after.mapped
    for pool in pools:
        assert pool.free == sorted(pool.free)
        assert len(pool.blocks) == len(pool.free) + len(pool.unmapped)


@given(
    st.lists(st.integers(1, 60 * MIB) | st.sampled_from([4, 8192, 2 * MIB, 9 * MIB, 11 * MIB]), max_size=12),
    st.lists(st.integers(1, 9000) | st.integers(1, 30 * MIB), min_size=1, max_size=8),
    st.integers(0, 60),
    st.lists(st.integers(1, 60 * MIB), max_size=8),
)
def test_filling_is_as_many_requests(first: list[int], sizes: list[int], times: int, last: list[int]) -> None:
    counted, asked = CachingAllocator(), CachingAllocator()
    for one in (counted, asked):
        for block in [one.malloc(size) for size in first][::2]:
            one.free(block)
    counted.fill(sizes, times)
    for size in sizes * times:
        asked.malloc(size)
    for one in (counted, asked):
        for block in [one.malloc(size) for size in last][::2]:
            one.free(block)
        one.empty_cache()
    assert (counted.allocated, counted.reserved) == (asked.allocated, asked.reserved)
