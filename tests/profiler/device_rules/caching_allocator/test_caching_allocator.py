"""The caching allocator's model: hand-computed sequences, and a second, naive implementation."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from naive_allocator import NaiveAllocator

from profiler.device_rules.caching_allocator import (
    AllocatorSettings,
    CachingAllocator,
    SimulatedOutOfMemory,
    round_size,
    segment_size,
)
from profiler.units import KIB, MIB


def run(
    *sizes_and_frees: int, settings: AllocatorSettings | None = None, limit_bytes: int | None = None
) -> CachingAllocator:
    """Positive numbers are mallocs (keys 1, 2, ...); -k frees key k."""
    allocator = CachingAllocator(settings, limit_bytes=limit_bytes)
    key = 0
    for step in sizes_and_frees:
        if step < 0:
            allocator.free(-step)
        else:
            key += 1
            allocator.malloc(key, step)
    return allocator


def layout(allocator: CachingAllocator) -> list[tuple[tuple[int, bool], ...]]:
    return [segment.blocks for segment in allocator.segments]


# --- rounding (round_size, roundup_power2_next_division) ------------------------------------------


@pytest.mark.parametrize(
    ("nbytes", "rounded"),
    [(1, 512), (511, 512), (512, 512), (513, 1024), (1024, 1024), (MIB + 1, MIB + 512)],
)
def test_sizes_are_rounded_to_512_bytes(nbytes: int, rounded: int) -> None:
    assert round_size(nbytes, AllocatorSettings()) == rounded
    assert run(nbytes).allocated_bytes == rounded


def test_no_bytes_take_no_block() -> None:
    allocator = run(0, -1, 0)
    assert (allocator.allocated_bytes, allocator.reserved_bytes, len(allocator.segments)) == (
        0,
    ) * 3


def test_power_of_two_divisions_round_to_the_next_part() -> None:
    four = AllocatorSettings(roundup_power2_divisions=(4,) * 16)
    # the source's own example, 1200 into 4 parts of 1024..2048, is below 512 * 4: plain rounding
    assert round_size(1200, four) == 1536
    assert round_size(5 * KIB, four) == 5 * KIB
    assert round_size(5 * KIB + 1, four) == 6 * KIB
    assert round_size(9 * MIB + 1, four) == 10 * MIB
    assert round_size(15 * MIB, four) == 16 * MIB
    assert round_size(16 * MIB, four) == 16 * MIB
    assert run(9 * MIB + 1, settings=four).allocated_bytes == 10 * MIB


def test_divisions_differ_by_interval() -> None:
    settings = AllocatorSettings.parse("roundup_power2_divisions:[64:8,128:2,256:4,>:1]")
    assert round_size(33 * MIB, settings) == 36 * MIB  # below the first bound: 8 parts of 32
    assert round_size(65 * MIB, settings) == 72 * MIB
    assert round_size(129 * MIB, settings) == 192 * MIB
    assert round_size(257 * MIB, settings) == 320 * MIB
    assert round_size(513 * MIB + 1, settings) == 513 * MIB + 512


# --- segments (get_allocation_size, get_pool) -----------------------------------------------------


@pytest.mark.parametrize(
    ("nbytes", "reserved"),
    [
        (1, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB - 511, 10 * MIB),  # rounds to 10 MiB, which is not below kMinLargeAlloc
        (10 * MIB, 10 * MIB),
        (10 * MIB + 1, 12 * MIB),
        (11 * MIB, 12 * MIB),
        (21 * MIB, 22 * MIB),
        (100 * MIB, 100 * MIB),
    ],
)
def test_segment_sizes(nbytes: int, reserved: int) -> None:
    allocator = run(nbytes)
    assert allocator.reserved_bytes == allocator.peak_reserved_bytes == reserved
    assert segment_size(round_size(nbytes, AllocatorSettings()), AllocatorSettings()) == reserved


def test_large_segment_size_is_an_option() -> None:
    settings = AllocatorSettings(large_segment_size_bytes=64 * MIB)
    assert run(MIB + 1, settings=settings).reserved_bytes == 64 * MIB
    assert run(10 * MIB, settings=settings).reserved_bytes == 10 * MIB


def test_small_and_large_requests_do_not_share_segments() -> None:
    # 18 MiB of the large segment are free; the small request still opens its own
    allocator = run(2 * MIB, 512)
    assert [segment.is_small for segment in allocator.segments] == [False, True]
    assert allocator.reserved_bytes == 22 * MIB


# --- splitting (should_split) ---------------------------------------------------------------------


def test_the_small_pool_splits_down_to_512_bytes() -> None:
    assert layout(run(MIB)) == [((MIB, True), (MIB, False))]
    allocator = run(MIB, MIB - 512)
    assert layout(allocator) == [((MIB, True), (MIB - 512, True), (512, False))]
    assert run(MIB, MIB - 512, 512).reserved_bytes == 2 * MIB


def test_the_large_pool_keeps_a_rest_of_one_mebibyte() -> None:
    # 11 MiB in a 12 MiB segment: the rest is 1 MiB, not more, so it stays inside the block
    allocator = run(11 * MIB)
    assert layout(allocator) == [((12 * MIB, True),)]
    assert allocator.allocated_bytes == 12 * MIB
    # 512 bytes less and the rest is cut off
    allocator = run(11 * MIB - 512)
    assert layout(allocator) == [((11 * MIB - 512, True), (MIB + 512, False))]


def test_a_twenty_mebibyte_segment_serves_several_requests() -> None:
    allocator = run(9 * MIB, 8 * MIB, 2 * MIB)
    # after 9 + 8 + 2 a rest of exactly 1 MiB stays with the last block
    assert layout(allocator) == [((9 * MIB, True), (8 * MIB, True), (3 * MIB, True))]
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (20 * MIB, 20 * MIB)


# --- best fit (get_free_block, BlockComparatorSize) -----------------------------------------------


def test_the_smallest_block_that_fits_is_taken() -> None:
    allocator = run(30 * MIB, 12 * MIB, 20 * MIB, -1, -2, -3, 12 * MIB)
    assert layout(allocator) == [((30 * MIB, False),), ((12 * MIB, True),), ((20 * MIB, False),)]


def test_equal_sizes_go_by_address() -> None:
    allocator = run(12 * MIB, 12 * MIB, -2, -1, 12 * MIB)
    assert layout(allocator) == [((12 * MIB, True),), ((12 * MIB, False),)]


def test_a_larger_free_block_is_cut() -> None:
    allocator = run(30 * MIB, -1, 12 * MIB)
    assert layout(allocator) == [((12 * MIB, True), (18 * MIB, False))]
    assert allocator.reserved_bytes == 30 * MIB


# --- merging (free_block, try_merge_blocks) -------------------------------------------------------


def test_free_neighbours_become_one_block() -> None:
    sizes = (4 * MIB, 4 * MIB, 4 * MIB)
    assert layout(run(*sizes, -1, -3)) == [((4 * MIB, False), (4 * MIB, True), (12 * MIB, False))]
    assert layout(run(*sizes, -1, -3, -2)) == [((20 * MIB, False),)]
    assert layout(run(*sizes, -1, -2)) == [((8 * MIB, False), (4 * MIB, True), (8 * MIB, False))]


def test_segments_are_not_merged_with_each_other() -> None:
    allocator = run(10 * MIB, 10 * MIB, -1, -2, 20 * MIB)
    assert allocator.reserved_bytes == 40 * MIB
    assert allocator.peak_allocated_bytes == 20 * MIB


# --- cache and peaks ------------------------------------------------------------------------------


def test_freed_memory_stays_reserved_until_the_cache_is_emptied() -> None:
    allocator = run(100 * MIB, 4 * MIB, -1)
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (4 * MIB, 120 * MIB)
    allocator.empty_cache()  # the 20 MiB segment is in use
    assert allocator.reserved_bytes == 20 * MIB
    allocator.free(2)
    allocator.empty_cache()
    assert allocator.segments == ()
    assert (allocator.peak_allocated_bytes, allocator.peak_reserved_bytes) == (104 * MIB, 120 * MIB)


def test_a_second_step_like_the_first_reserves_nothing_new() -> None:
    allocator = CachingAllocator()
    for _ in range(3):
        for key, nbytes in ((1, 3 * MIB), (2, 700), (3, 50 * MIB)):
            allocator.malloc(key, nbytes)
        for key in (1, 2, 3):
            allocator.free(key)
        assert allocator.peak_reserved_bytes == 72 * MIB


# --- max_split_size_mb ----------------------------------------------------------------------------


def test_oversize_blocks_do_not_serve_smaller_requests() -> None:
    settings = AllocatorSettings.parse("max_split_size_mb:40")
    assert run(60 * MIB, -1, 12 * MIB, settings=settings).reserved_bytes == 72 * MIB
    assert run(60 * MIB, -1, 12 * MIB).reserved_bytes == 60 * MIB
    # a block just below the bound is cut as ever
    assert run(38 * MIB, -1, 12 * MIB, settings=settings).reserved_bytes == 38 * MIB


def test_oversize_requests_take_oversize_blocks_whole_and_only_near_ones() -> None:
    settings = AllocatorSettings.parse("max_split_size_mb:40")
    near = run(60 * MIB, -1, 42 * MIB, settings=settings)
    assert layout(near) == [((60 * MIB, True),)]
    assert near.allocated_bytes == 60 * MIB
    # 60 >= 40 + 20: too wasteful
    assert run(60 * MIB, -1, 40 * MIB, settings=settings).reserved_bytes == 100 * MIB
    wider = AllocatorSettings.parse("max_split_size_mb:40,max_non_split_rounding_mb:21")
    assert run(60 * MIB, -1, 40 * MIB, settings=wider).reserved_bytes == 60 * MIB


def test_under_the_cap_one_large_enough_oversize_block_is_released() -> None:
    settings = AllocatorSettings.parse("max_split_size_mb:40")
    allocator = run(
        50 * MIB, 90 * MIB, -1, -2, 12 * MIB, settings=settings, limit_bytes=150 * MIB
    )  # 140 + 12 > 150; the smallest block of >= 40 goes, and the retry of everything is not needed
    assert [segment.total_bytes for segment in allocator.segments] == [90 * MIB, 12 * MIB]
    assert allocator.num_alloc_retries == 0


def test_under_the_cap_several_oversize_blocks_are_released_largest_first() -> None:
    settings = AllocatorSettings.parse("max_split_size_mb:40")
    allocator = run(
        *(42 * MIB, 44 * MIB, 50 * MIB, -1, -2, -3, 94 * MIB),  # 50 + 44 are exactly enough
        settings=settings,
        limit_bytes=160 * MIB,
    )
    assert [segment.total_bytes for segment in allocator.segments] == [42 * MIB, 94 * MIB]
    assert allocator.num_alloc_retries == 0


# --- the cap (set_per_process_memory_fraction) ----------------------------------------------------


def test_the_cache_is_released_before_giving_up() -> None:
    allocator = run(60 * MIB, 2 * MIB, -1, 80 * MIB, limit_bytes=100 * MIB)
    assert allocator.reserved_bytes == 100 * MIB
    assert allocator.num_alloc_retries == 1
    assert allocator.peak_reserved_bytes == 100 * MIB


def test_out_of_memory_carries_the_facts_and_leaves_a_usable_state() -> None:
    allocator = run(60 * MIB, limit_bytes=100 * MIB)
    with pytest.raises(SimulatedOutOfMemory) as caught:
        allocator.malloc(7, 50 * MIB - 3)
    error = caught.value
    assert (error.requested_bytes, error.allocated_bytes) == (50 * MIB - 3, 60 * MIB)
    assert (error.reserved_bytes, error.limit_bytes) == (60 * MIB, 100 * MIB)
    assert "50.00 MiB do not fit" in str(error)
    assert allocator.num_alloc_retries == 1
    allocator.malloc(7, 40 * MIB)
    assert allocator.reserved_bytes == 100 * MIB


def test_a_block_in_use_keeps_its_whole_segment() -> None:
    # 512 bytes too much: the 20 MiB segment cannot go back while 2 MiB of it live
    with pytest.raises(SimulatedOutOfMemory):
        run(2 * MIB, 81 * MIB, limit_bytes=100 * MIB)
    run(2 * MIB, 80 * MIB, limit_bytes=100 * MIB)


# --- garbage_collection_threshold -----------------------------------------------------------------


def test_garbage_collection_gives_old_blocks_back_first() -> None:
    # searches of the large pool: 30, 40, 40 again (reused), 45. The 30 became free after search 2,
    # the 40 after search 3; at search 4 their ages are 2 and 1, so only the 30 is above average
    steps = (30 * MIB, 40 * MIB, -1, -2, 40 * MIB, -3, 45 * MIB)
    settings = AllocatorSettings(garbage_collection_threshold=0.5)
    allocator = run(*steps, settings=settings, limit_bytes=120 * MIB)  # 70 reserved, 60 allowed
    assert [s.total_bytes for s in allocator.segments] == [40 * MIB, 46 * MIB]
    assert allocator.num_alloc_retries == 0
    assert run(*steps, limit_bytes=120 * MIB).reserved_bytes == 116 * MIB


def test_garbage_collection_needs_a_cap_and_the_threshold() -> None:
    settings = AllocatorSettings(garbage_collection_threshold=0.5)
    steps = (30 * MIB, -1, 40 * MIB)
    assert run(*steps, settings=settings).reserved_bytes == 70 * MIB
    assert run(*steps, settings=settings, limit_bytes=100 * MIB).reserved_bytes == 70 * MIB
    assert run(*steps, settings=settings, limit_bytes=58 * MIB).num_alloc_retries == 0
    assert run(*steps, settings=settings, limit_bytes=58 * MIB).reserved_bytes == 40 * MIB
    assert run(*steps, limit_bytes=58 * MIB).num_alloc_retries == 1


# --- expandable segments --------------------------------------------------------------------------

EXPANDABLE = AllocatorSettings(expandable_segments=True)


def test_expandable_segments_are_mapped_in_pages() -> None:
    assert run(512, settings=EXPANDABLE).reserved_bytes == 2 * MIB
    assert run(2 * MIB, settings=EXPANDABLE).reserved_bytes == 20 * MIB
    assert run(21 * MIB, settings=EXPANDABLE).reserved_bytes == 40 * MIB
    pages = AllocatorSettings(expandable_segments=True, large_segment_size_bytes=12 * MIB)
    assert run(21 * MIB, settings=pages).reserved_bytes == 24 * MIB


def test_an_expandable_segment_grows_from_its_free_end() -> None:
    allocator = run(15 * MIB, 15 * MIB, settings=EXPANDABLE)
    # 5 MiB are left over of the first page, so 10 more are mapped as one page of 20
    assert layout(allocator) == [((15 * MIB, True), (15 * MIB, True), (10 * MIB, False))]
    assert allocator.reserved_bytes == 40 * MIB
    assert run(15 * MIB, 15 * MIB).reserved_bytes == 32 * MIB


def test_expandable_segments_split_down_to_512_bytes_in_both_pools() -> None:
    allocator = run(19 * MIB + 512, settings=EXPANDABLE)
    assert allocator.allocated_bytes == 19 * MIB + 512
    assert layout(allocator) == [((19 * MIB + 512, True), (MIB - 512, False))]


def test_expandable_segments_reuse_across_sizes() -> None:
    # freed 10 + 10 MiB neighbours serve one request of 20; without the option they cannot
    steps = (10 * MIB, 10 * MIB, -1, -2, 20 * MIB)
    assert run(*steps, settings=EXPANDABLE).reserved_bytes == 20 * MIB
    assert run(*steps).reserved_bytes == 40 * MIB


def test_a_closed_hole_is_preferred_to_the_growing_end() -> None:
    # free: the hole of 8 MiB and the end of 4 MiB (which may grow without bound)
    allocator = run(8 * MIB, 8 * MIB, -1, 3 * MIB, settings=EXPANDABLE)
    assert layout(allocator) == [
        ((3 * MIB, True), (5 * MIB, False), (8 * MIB, True), (4 * MIB, False))
    ]


def test_emptying_the_cache_unmaps_whole_pages_only() -> None:
    allocator = run(2 * MIB, 56 * MIB, 2 * MIB, -2, settings=EXPANDABLE)
    assert allocator.reserved_bytes == 60 * MIB
    allocator.empty_cache()  # free: bytes 2..58 of 60; whole pages inside: 20..40
    assert allocator.reserved_bytes == 40 * MIB
    assert layout(allocator) == [
        ((2 * MIB, True), (18 * MIB, False)),
        ((18 * MIB, False), (2 * MIB, True)),
    ]
    # the hole is filled again before the end grows: 18 free + 1 page
    allocator.malloc(9, 30 * MIB)
    assert allocator.reserved_bytes == 60 * MIB
    assert layout(allocator) == [
        ((2 * MIB, True), (30 * MIB, True), (26 * MIB, False), (2 * MIB, True))
    ]


def test_an_unused_expandable_segment_goes_back_whole() -> None:
    allocator = run(30 * MIB, -1, settings=EXPANDABLE)
    allocator.empty_cache()
    assert (allocator.reserved_bytes, allocator.segments) == (0, ())
    allocator.malloc(2, 30 * MIB)
    assert allocator.reserved_bytes == 40 * MIB


# --- misuse ---------------------------------------------------------------------------------------


def test_keys_are_checked() -> None:
    allocator = run(512)
    with pytest.raises(ValueError, match="key 1"):
        allocator.malloc(1, 512)
    with pytest.raises(ValueError, match="key 5"):
        allocator.free(5)


# --- a second implementation ----------------------------------------------------------------------


Event = tuple[str, int, int]  # kind, key, bytes


def random_events(rng: random.Random, count: int) -> list[Event]:
    events: list[Event] = []
    live: list[int] = []
    sizes = [int(2 ** rng.uniform(6, 26.5)) for _ in range(12)]
    for key in range(count):
        draw = rng.random()
        if live and (draw < 0.42 or len(live) > 40):
            events.append(("free", live.pop(rng.randrange(len(live))), 0))
        elif draw > 0.995:
            events.append(("empty_cache", 0, 0))
        else:
            size = rng.choice(sizes) if rng.random() < 0.7 else int(2 ** rng.uniform(6, 26.5))
            events.append(("malloc", key, size))
            live.append(key)
    return events


OPTIONS = [
    "",
    "expandable_segments:True",
    "max_split_size_mb:21",
    "max_split_size_mb:33,max_non_split_rounding_mb:50",
    "roundup_power2_divisions:4",
    "garbage_collection_threshold:0.6",
    "large_segment_size_mb:12",
    "garbage_collection_threshold:0.4,max_split_size_mb:24",
    "expandable_segments:True,large_segment_size_mb:32",
    "expandable_segments:True,max_split_size_mb:32",
]


@pytest.mark.parametrize("capped", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_agrees_with_a_naive_second_implementation(options: str, capped: bool) -> None:
    settings = AllocatorSettings.parse(options)
    rng = random.Random(f"{options} {capped}")
    failures = 0
    for _ in range(25):
        limit = rng.randrange(100, 500) * MIB if capped else None
        model = CachingAllocator(settings, limit_bytes=limit)
        naive = NaiveAllocator(settings, limit)
        lost: set[int] = set()
        for kind, key, nbytes in random_events(rng, 300):
            if kind == "malloc":
                served = naive.malloc(key, nbytes)
                try:
                    model.malloc(key, nbytes)
                    assert served
                except SimulatedOutOfMemory:
                    assert not served
                    lost.add(key)
            elif kind == "empty_cache":
                model.empty_cache()
                naive.empty_cache()
            elif key not in lost:
                model.free(key)
                naive.free(key)
            assert model.allocated_bytes == naive.total("live")
            assert model.reserved_bytes == naive.total("mapped")
        assert model.peak_allocated_bytes == naive.peak_allocated
        assert model.peak_reserved_bytes == naive.peak_reserved
        assert model.num_alloc_retries == naive.retries
        check_invariants(model)
        failures += len(lost)
    assert capped == (failures > 0)


def check_invariants(model: CachingAllocator) -> None:
    assert sum(s.total_bytes for s in model.segments) == model.reserved_bytes
    assert sum(s.allocated_bytes for s in model.segments) == model.allocated_bytes
    for segment in model.segments:
        live = [alive for _, alive in segment.blocks]
        assert all(a or b for a, b in pairwise(live)), "free neighbours"
        assert all(size % 512 == 0 for size, _ in segment.blocks)


@pytest.mark.parametrize("expandable", [False, True])
def test_a_request_that_no_device_holds_is_counted_all_the_same(expandable: bool) -> None:
    """16 TiB, four times: a prediction says what an absurd workload would need."""
    size = 1 << 44
    settings = AllocatorSettings(expandable_segments=expandable)
    allocator = run(*[size] * 4, -2, size, settings=settings)
    assert allocator.allocated_bytes == 4 * size
    assert 0 <= allocator.peak_reserved_bytes - 4 * size < 20 * MIB  # whole pages
