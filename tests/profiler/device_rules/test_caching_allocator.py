"""The caching allocator's model: hand-computed sequences, and a second, naive implementation."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from profiler.device_rules.caching_allocator import (
    DEFAULT_CONFIGURATION,
    AllocatorSettings,
    CachingAllocator,
    Event,
    SimulatedOutOfMemory,
    configuration,
    configure,
    replay,
    round_size,
    segment_size,
)
from profiler.errors import UsageError
from profiler.units import GIB, KIB, MIB


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
    assert (allocator.allocated_bytes, allocator.reserved_bytes, allocator.num_segments) == (0,) * 3


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
    assert allocator.fragmentation_bytes == 20 * MIB


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


def test_reset_peak_starts_from_what_is_held() -> None:
    allocator = run(100 * MIB, -1)
    allocator.reset_peak()
    assert (allocator.peak_allocated_bytes, allocator.peak_reserved_bytes) == (0, 100 * MIB)


def test_a_second_step_like_the_first_reserves_nothing_new() -> None:
    step = [("malloc", k, n) for k, n in ((1, 3 * MIB), (2, 700), (3, 50 * MIB))]
    step += [("free", k, 0) for k in (1, 2, 3)]
    assert replay(step * 3).peak_reserved_bytes == replay(step).peak_reserved_bytes == 72 * MIB


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
    assert (allocator.num_alloc_retries, allocator.num_ooms) == (1, 0)
    assert allocator.peak_reserved_bytes == 100 * MIB


def test_out_of_memory_carries_the_facts_and_leaves_a_usable_state() -> None:
    allocator = run(60 * MIB, limit_bytes=100 * MIB)
    with pytest.raises(SimulatedOutOfMemory) as caught:
        allocator.malloc(7, 50 * MIB - 3)
    error = caught.value
    assert (error.requested_bytes, error.allocated_bytes) == (50 * MIB - 3, 60 * MIB)
    assert (error.reserved_bytes, error.limit_bytes) == (60 * MIB, 100 * MIB)
    assert "50.00 MiB do not fit" in str(error)
    assert (allocator.num_alloc_retries, allocator.num_ooms) == (1, 1)
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


# --- settings -------------------------------------------------------------------------------------


def test_parse_reads_what_pytorch_reads() -> None:
    settings = AllocatorSettings.parse(
        " max_split_size_mb:128, expandable_segments:True,garbage_collection_threshold:0.8,"
        "large_segment_size_mb:32,max_non_split_rounding_mb:40,per_process_memory_fraction:0.5,"
        "backend:native,pinned_use_background_threads:True,expandable_segments_reserve:40G"
    )
    assert settings == AllocatorSettings(
        expandable_segments=True,
        max_split_size_bytes=128 * MIB,
        garbage_collection_threshold=0.8,
        large_segment_size_bytes=32 * MIB,
        max_non_split_rounding_bytes=40 * MIB,
        per_process_memory_fraction=0.5,
    )
    assert AllocatorSettings.parse("") == AllocatorSettings()


def test_parse_of_divisions() -> None:
    # the example of c10/test/core/AllocatorConfig_test.cpp, with the values it expects
    text = "roundup_power2_divisions:[64:8,128:2,256:4,512:2,1024:4,>:1]"
    divisions = AllocatorSettings.parse(text).roundup_power2_divisions
    assert divisions == (8, 8, 8, 8, 8, 8, 8, 2, 4, 2, 4, 1, 1, 1, 1, 1)
    assert (
        AllocatorSettings.parse("roundup_power2_divisions:4").roundup_power2_divisions == (4,) * 16
    )


@pytest.mark.parametrize(
    "text",
    [
        "max_split_size_mb:10",
        "max_split_size_mb:30,large_segment_size_mb:32",
        "max_split_size_mb:lots",
        "large_segment_size_mb:10",
        "expandable_segments:true",
        "garbage_collection_threshold:1.0",
        "roundup_power2_divisions:3",
        "roundup_power2_divisions:0",
        "roundup_power2_divisions:[3:4]",
        "backend:cudaMallocAsync",
        "no_such_option:1",
        "max_split_size_mb",
        "max_split_size_mb:40;expandable_segments:True",
    ],
)
def test_parse_refuses_what_pytorch_refuses_or_we_do_not_model(text: str) -> None:
    with pytest.raises(UsageError, match="allocator option"):
        AllocatorSettings.parse(text)


# --- misuse ---------------------------------------------------------------------------------------


def test_keys_are_checked() -> None:
    allocator = run(512)
    with pytest.raises(ValueError, match="key 1"):
        allocator.malloc(1, 512)
    with pytest.raises(ValueError, match="key 5"):
        allocator.free(5)
    with pytest.raises(ValueError, match="unknown event 'mallok'"):
        replay([("mallok", 1, 512)])


# --- a second implementation ----------------------------------------------------------------------


@dataclass
class NaiveRun:
    """One segment as a list of [size, state] in address order; every question is a full scan."""

    page: int | None  # None: fetched whole
    small: bool
    runs: list[list[Any]]  # [size, "free" | "live:<key>" | "unmapped", age base]


@dataclass
class Naive:
    """The rules once more, written for being obvious."""

    settings: AllocatorSettings
    limit: int | None
    segments: list[NaiveRun] = field(default_factory=list)
    searches: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})
    peak_allocated: int = 0
    peak_reserved: int = 0
    retries: int = 0

    def total(self, wanted: str) -> int:
        return sum(
            size
            for segment in self.segments
            for size, state, _ in segment.runs
            if str(state).startswith(wanted) or (wanted == "mapped" and state != "unmapped")
        )

    def note(self) -> None:
        self.peak_allocated = max(self.peak_allocated, self.total("live"))
        self.peak_reserved = max(self.peak_reserved, self.total("mapped"))

    def tidy(self, segment: NaiveRun) -> None:
        """Merge equal neighbours; the age of a merged block is of now."""
        merged: list[list[Any]] = []
        for size, state, age in segment.runs:
            if merged and merged[-1][1] == state and state in ("free", "unmapped"):
                merged[-1] = [merged[-1][0] + size, state, max(merged[-1][2], age)]
            elif size:
                merged.append([size, state, age])
        segment.runs = merged

    def free_blocks(self, small: bool) -> list[tuple[int, int, int]]:
        found = [
            (run[0], number, index)
            for number, segment in enumerate(self.segments)
            for index, run in enumerate(segment.runs)
            if segment.small == small and run[1] == "free"
        ]
        return sorted(found)

    def growth(self, number: int, index: int) -> int:
        runs = self.segments[number].runs
        more = (
            runs[index + 1][0] if len(runs) > index + 1 and runs[index + 1][1] == "unmapped" else 0
        )
        return runs[index][0] + more

    def find(self, size: int, small: bool) -> tuple[int, int] | None:
        fitting = [block for block in self.free_blocks(small) if block[0] >= size]
        if not fitting:
            return None
        chosen = fitting[0]
        if self.settings.expandable_segments:
            for other in fitting[1:]:
                if self.growth(*other[1:]) >= self.growth(*chosen[1:]):
                    break
                chosen = other
        bound = self.settings.max_split_size_bytes
        if bound is not None:
            slack = (
                self.settings.max_non_split_rounding_bytes or self.settings.large_segment_size_bytes
            )
            if size < bound <= chosen[0] or (size >= bound and chosen[0] >= size + slack):
                return None
        return chosen[1:]

    def drop_unused(self, which: list[int]) -> None:
        self.segments = [s for number, s in enumerate(self.segments) if number not in which]

    def whole(self, number: int) -> bool:
        segment = self.segments[number]
        return segment.page is None and [run[1] for run in segment.runs] == ["free"]

    def empty_cache(self) -> None:
        self.drop_unused([n for n in range(len(self.segments)) if self.whole(n)])
        for segment in self.segments:
            if segment.page is not None:
                self.unmap(segment, segment.page)
        self.drop_unused(
            [n for n, s in enumerate(self.segments) if all(r[1] == "unmapped" for r in s.runs)]
        )

    def unmap(self, segment: NaiveRun, page: int) -> None:
        cut: list[list[Any]] = []
        at = 0
        for size, state, age in segment.runs:
            end = at + size
            first, last = -(-at // page) * page, end // page * page
            if state == "free" and first < last:
                now = self.searches[segment.small]
                cut += [[first - at, "free", now], [last - first, "unmapped", now]]
                cut += [[end - last, "free", now]]
            else:
                cut.append([size, state, age])
            at = end
        segment.runs = [run for run in cut if run[0]]
        self.tidy(segment)

    def collect(self) -> None:
        if self.limit is None or not self.settings.garbage_collection_threshold:
            return
        target = self.total("mapped") - int(self.settings.garbage_collection_threshold * self.limit)
        while target > 0:
            ages = {
                n: self.searches[False] - s.runs[0][2]
                for n, s in enumerate(self.segments)
                if not s.small and self.whole(n)
            }
            if not ages:
                return
            old = [n for n, age in ages.items() if age >= sum(ages.values()) / len(ages)]
            target -= sum(self.segments[n].runs[0][0] for n in old)
            self.drop_unused(old)

    def release_oversize(self, size: int, small: bool) -> bool:
        bound = self.settings.max_split_size_bytes
        if bound is None or self.settings.expandable_segments:
            return False
        wanted = max(size, bound)
        enough = [b for b in self.free_blocks(small) if b[0] >= wanted]
        if enough:
            self.drop_unused([enough[0][1]])
            return True
        gone: list[int] = []
        released = 0
        for block, number, _ in reversed(self.free_blocks(small)):
            if released < wanted and block >= bound:
                gone.append(number)
                released += block
        self.drop_unused(gone)
        return released >= wanted

    def fits(self, size: int) -> bool:
        fetched = segment_size(size, self.settings)
        return self.limit is None or self.total("mapped") + fetched <= self.limit

    def fetch(self, size: int, small: bool) -> tuple[int, int] | None:
        self.collect()
        if not self.fits(size) and not (self.release_oversize(size, small) and self.fits(size)):
            self.empty_cache()
            self.retries += 1
            if not self.fits(size):
                return None
        now = self.searches[small]
        if not self.settings.expandable_segments:
            fetched = segment_size(size, self.settings)
            self.segments.append(NaiveRun(None, small, [[fetched, "free", now]]))
            return len(self.segments) - 1, 0
        if not any(s.small == small for s in self.segments):
            page = 2 * MIB if small else self.settings.large_segment_size_bytes
            self.segments.append(NaiveRun(page, small, [[1 << 42, "unmapped", now]]))
        number = next(n for n, s in enumerate(self.segments) if s.small == small)
        return number, self.grow(self.segments[number], size)

    def grow(self, segment: NaiveRun, size: int) -> int:
        """Map the lowest run of free and unmapped bytes that contains an unmapped one."""
        runs, page = segment.runs, segment.page
        assert page is not None
        for index in range(len(runs)):
            stop = index
            while stop < len(runs) and runs[stop][1] in ("free", "unmapped"):
                stop += 1
            span = runs[index:stop]
            starts = [r[1] for r in span[:2]]
            if "unmapped" not in starts or sum(r[0] for r in span) < size:
                continue
            have = 0
            here = index
            while have < size:
                if runs[here][1] == "unmapped":
                    need = min(-(-(size - have) // page) * page, runs[here][0])
                    now = self.searches[segment.small]
                    rest = [[runs[here][0] - need, "unmapped", now]]
                    runs[here : here + 1] = [[need, "free", now], *(r for r in rest if r[0])]
                have += runs[here][0]
                here += 1
            self.tidy(segment)
            return index
        raise AssertionError("an expandable segment has no end")

    def malloc(self, key: int, nbytes: int) -> bool:
        size = round_size(nbytes, self.settings)
        small = size <= MIB
        self.searches[small] += 1
        place = self.find(size, small) or self.fetch(size, small)
        if place is None:
            return False
        number, index = place
        segment = self.segments[number]
        self.note()
        rest = segment.runs[index][0] - size
        bound = self.settings.max_split_size_bytes
        if small or self.settings.expandable_segments:
            cut = rest >= 512
        else:
            cut = rest > MIB and (bound is None or size < bound)
        if cut:
            segment.runs.insert(index + 1, [rest, "free", self.searches[small]])
            segment.runs[index][0] = size
        segment.runs[index][1] = f"live:{key}"
        self.note()
        return True

    def free(self, key: int) -> None:
        for segment in self.segments:
            for run in segment.runs:
                if run[1] == f"live:{key}":
                    run[1:] = ["free", self.searches[segment.small]]
                    self.tidy(segment)
                    return


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
        naive = Naive(settings, limit)
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


def test_report_sums_up_a_replay() -> None:
    events: list[Event] = [("malloc", 1, 3 * MIB), ("malloc", 2, 100), ("free", 1, 0)]
    report = replay(events, limit_bytes=GIB)
    assert (report.peak_allocated_bytes, report.final_allocated_bytes) == (3 * MIB + 512, 512)
    assert (report.peak_reserved_bytes, report.final_reserved_bytes) == (22 * MIB, 22 * MIB)
    assert report.fragmentation_bytes == 19 * MIB - 512
    assert report.num_alloc_retries == 0
    assert [segment.is_small for segment in report.segments] == [False, True]


# --- configuration


def test_the_environment_goes_before_our_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    assert configuration() == DEFAULT_CONFIGURATION
    assert AllocatorSettings.parse(configuration()).expandable_segments
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    assert configuration() == "max_split_size_mb:64"
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "backend:native")
    assert configuration() == "backend:native"


def test_only_an_environment_that_says_nothing_is_written_to() -> None:
    silent: dict[str, str] = {}
    configure(silent)
    assert list(silent.values()) == [DEFAULT_CONFIGURATION]
    said = {"PYTORCH_ALLOC_CONF": "backend:native"}
    configure(said)
    assert said == {"PYTORCH_ALLOC_CONF": "backend:native"}
