"""The caching allocator: it serves requests from free blocks, and fetches and returns segments.

It models a single device and a single stream.

Complexity: a request or a free takes O(log n) comparisons and one O(n) memory move, for n free
blocks in its pool.
"""

from __future__ import annotations

import sys
from bisect import bisect_left

from profiler.device_rules.caching_allocator.blocks import (
    Block,
    ExpandableSegment,
    Pool,
    Segment,
    blocks_from,
)
from profiler.device_rules.caching_allocator.settings import AllocatorSettings
from profiler.device_rules.caching_allocator.sizes import (
    MIN_BLOCK_BYTES,
    SMALL_BYTES,
    SMALL_SEGMENT_BYTES,
    round_size,
    round_to_multiple,
    segment_size,
)
from profiler.units import format_bytes

_EXPANDABLE_RANGE_BYTES = 1 << 60
"""Address range of an expandable segment. PyTorch takes 9/8 of the device's memory; here it only
matters that the range is larger than anything mapped, also for a step that fits no device."""


class SimulatedOutOfMemory(Exception):  # noqa: N818 - named after what it simulates
    """The modelled allocator could not serve a request under its cap.

    Args:
        requested_bytes: bytes of the request.
        allocated_bytes: bytes of the allocated blocks.
        reserved_bytes: bytes still reserved after the cache was released.
        limit_bytes: the cap.
    """

    def __init__(
        self, *, requested_bytes: int, allocated_bytes: int, reserved_bytes: int, limit_bytes: int
    ) -> None:
        self.requested_bytes = requested_bytes
        self.allocated_bytes = allocated_bytes
        self.reserved_bytes = reserved_bytes
        self.limit_bytes = limit_bytes
        super().__init__(
            f"{format_bytes(requested_bytes)} do not fit: {format_bytes(allocated_bytes)} allocated"
            f" and {format_bytes(reserved_bytes)} reserved of {format_bytes(limit_bytes)}"
        )


class CachingAllocator:
    """The caching allocator of a device.

    Args:
        settings: options; None for PyTorch's defaults.
        limit_bytes: most bytes it may reserve (`torch.cuda.set_per_process_memory_fraction`); None
            for no cap.

    Attributes:
        allocated_bytes: bytes of the allocated blocks (`memory_allocated()`).
        reserved_bytes: bytes of all segments (`memory_reserved()`).
        peak_allocated_bytes: highest so far (`max_memory_allocated()`).
        peak_reserved_bytes: highest so far (`max_memory_reserved()`).
        num_alloc_retries: number of times that the cache was released to serve a request.
    """

    def __init__(
        self, settings: AllocatorSettings | None = None, *, limit_bytes: int | None = None
    ) -> None:
        self.settings = settings or AllocatorSettings()
        self.limit_bytes = limit_bytes
        self.allocated_bytes = 0
        self.reserved_bytes = 0
        self.peak_allocated_bytes = 0
        self.peak_reserved_bytes = 0
        self.num_alloc_retries = 0
        self._max_split = self.settings.max_split_size_bytes or sys.maxsize
        self._small = Pool(
            is_small=True,
            page_bytes=SMALL_SEGMENT_BYTES,
            splits_always=True,
            max_split_bytes=self._max_split,
        )
        self._large = Pool(
            is_small=False,
            page_bytes=self.settings.large_segment_size_bytes,
            splits_always=self.settings.expandable_segments,
            max_split_bytes=self._max_split,
        )
        self._live: dict[int, Block | None] = {}
        self._first_blocks: dict[int, Block] = {}  # of each segment, by the segment's address
        self._next_address = _EXPANDABLE_RANGE_BYTES
        self._oversize_excess = (
            self.settings.max_non_split_rounding_bytes or self.settings.large_segment_size_bytes
        )
        self._rounds_up = any(d > 1 for d in self.settings.roundup_power2_divisions)
        self._collects = limit_bytes is not None and self.settings.garbage_collection_threshold > 0

    def malloc(self, key: int, nbytes: int) -> int:
        """Serve a request.

        Args:
            key: name of the request until it is freed.
            nbytes: bytes requested.

        Returns:
            The bytes of its block. The whole block counts as allocated, also the part beyond the
            request.

        Raises:
            SimulatedOutOfMemory: it does not fit under the cap.
            ValueError: ``key`` is in use, or the size is negative.
        """
        if key in self._live or nbytes < 0:
            raise ValueError(f"cannot malloc {nbytes} B as key {key}: it is live or negative")
        if nbytes == 0:  # a null pointer without a block (NativeCachingAllocator::allocate)
            self._live[key] = None
            return 0
        if self._rounds_up:
            size = round_size(nbytes, self.settings)
        else:  # the same without a function call: this is the hottest line of a prediction
            size = (nbytes + MIN_BLOCK_BYTES - 1) & -MIN_BLOCK_BYTES
        pool = self._small if size <= SMALL_BYTES else self._large
        block = self._take_free(pool, size) or self._fetch(pool, size, nbytes)
        pool.split(block, size)
        block.allocated = True
        self._live[key] = block
        self.allocated_bytes += block.size
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)
        return block.size

    def free(self, key: int) -> None:
        """Put the block of ``key`` back into its pool (`free_block`).

        Raises:
            ValueError: ``key`` is not in use.
        """
        try:
            block = self._live.pop(key)
        except KeyError:
            raise ValueError(f"key {key} is not live; malloc it first") from None
        if block is None:
            return
        self.allocated_bytes -= block.size
        block.allocated = False
        block.pool.merge(block)

    def empty_cache(self) -> None:
        """Release all unused segments to the driver (`release_cached_blocks`)."""
        for pool in (self._large, self._small):
            for _, _, block in list(pool.free):
                if block.segment is not None:
                    self._unmap(block)
                elif not block.is_split:
                    self._release(block)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Every contiguous range of reserved memory, by address (`snapshot`)."""
        found: list[Segment] = []
        for first in self._first_blocks.values():
            mapped: list[Block] = []
            for block in blocks_from(first):
                if block.mapped:
                    mapped.append(block)
                elif mapped:
                    found.append(Segment.of(mapped))
                    mapped = []
            if mapped:
                found.append(Segment.of(mapped))
        return tuple(sorted(found, key=lambda segment: segment.address))

    # --- serving a request ---

    def _take_free(self, pool: Pool, size: int) -> Block | None:
        """Take the smallest free block that may serve a request (`get_free_block`)."""
        pool.searches += 1  # the clock by which the age of free blocks is counted
        free = pool.free
        index = bisect_left(free, (size,))
        if index == len(free):
            return None
        if self.settings.expandable_segments:
            index = _skip_growing(free, index)
        found = free[index][0]
        # Oversize blocks are never split, so a smaller request would waste them.
        if size < self._max_split <= found:
            return None
        # An oversize request takes no block that is larger than it by ``_oversize_excess`` or more.
        if size >= self._max_split and found >= size + self._oversize_excess:
            return None
        return free.pop(index)[2]

    def _fetch(self, pool: Pool, size: int, nbytes: int) -> Block:
        """Fetch memory from the driver for a request (second half of `malloc`)."""
        if self._collects:
            self._collect_garbage()
        fetched = segment_size(size, self.settings)
        if not (
            self._fits(fetched) or (self._release_oversize(pool, size) and self._fits(fetched))
        ):
            self.empty_cache()
            self.num_alloc_retries += 1
        if not self._fits(fetched):
            assert self.limit_bytes is not None
            raise SimulatedOutOfMemory(
                requested_bytes=nbytes,
                allocated_bytes=self.allocated_bytes,
                reserved_bytes=self.reserved_bytes,
                limit_bytes=self.limit_bytes,
            )
        if self.settings.expandable_segments:
            return self._expand(pool, size)
        block = Block(address=self._new_address(fetched), size=fetched, pool=pool, segment=None)
        self._first_blocks[block.address] = block
        self._reserve(fetched)
        return block

    def _fits(self, fetched: int) -> bool:
        """Return whether the cap allows more memory.

        Like `alloc_block`, this counts a whole segment, also where expandable segments would map
        fewer pages.
        """
        return self.limit_bytes is None or self.reserved_bytes + fetched <= self.limit_bytes

    def _reserve(self, nbytes: int) -> None:
        self.reserved_bytes += nbytes
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)

    def _new_address(self, nbytes: int) -> int:
        address = self._next_address
        # A gap of 2 MiB keeps neighbouring segments apart.
        self._next_address += round_to_multiple(nbytes, SMALL_SEGMENT_BYTES) + SMALL_SEGMENT_BYTES
        return address

    # --- giving memory back ---

    def _release(self, block: Block) -> None:
        """Return a segment that is a single free block to the driver (`release_block`)."""
        block.pool.remove(block)
        del self._first_blocks[block.address]
        self.reserved_bytes -= block.size

    def _release_oversize(self, pool: Pool, size: int) -> bool:
        """Release blocks that only oversize requests may use (`release_available_cached_blocks`).

        One block that is large enough is released, or else the largest blocks until their sum is.

        Returns:
            Whether at least ``size`` bytes were released.
        """
        if self.settings.max_split_size_bytes is None or self.settings.expandable_segments:
            return False
        wanted = max(size, self._max_split)
        index = bisect_left(pool.free, (wanted,))
        if index < len(pool.free):
            self._release(pool.free[index][2])
            return True
        released = 0
        while released < wanted and pool.free and pool.free[-1][0] >= self._max_split:
            largest = pool.free[-1][2]
            released += largest.size
            self._release(largest)
        return released >= wanted

    def _collect_garbage(self) -> None:
        """Release large blocks of at least average age (`garbage_collect_cached_blocks`)."""
        assert self.limit_bytes is not None
        threshold = int(self.settings.garbage_collection_threshold * self.limit_bytes)
        excess = self.reserved_bytes - threshold
        pool = self._large
        # only a segment that is a single free block can be returned to the driver
        kept = [block for _, _, block in pool.free if not block.is_split]
        while excess > 0 and kept:
            average = sum(pool.searches - block.free_since for block in kept) / len(kept)
            old = [block for block in kept if pool.searches - block.free_since >= average]
            for block in old:
                excess -= block.size
                self._release(block)
            kept = [block for block in kept if pool.searches - block.free_since < average]

    # --- expandable segments ---

    def _expand(self, pool: Pool, size: int) -> Block:
        """Make a free block by mapping memory, and take it (`try_allocate_expandable_block`)."""
        # ``_map`` merges new memory with the free block before it, so the block grows in the loop
        block = self._find_expandable(pool, size)
        if not block.mapped:
            block = self._map(block, min(block.size, size))
        while block.size < size:
            unmapped = block.next
            assert unmapped is not None
            block = self._map(unmapped, min(size - block.size, unmapped.size))
        pool.remove(block)
        return block

    def _find_expandable(self, pool: Pool, size: int) -> Block:
        """Find the lowest run of free and unmapped blocks that is large enough.

        Source: `find_expandable_block`. Without one, a new segment is made.

        Returns:
            The first block of the run.
        """
        for _, unmapped in pool.unmapped:
            first = unmapped
            if first.prev is not None and not first.prev.allocated:
                first = first.prev
            run_bytes = 0
            for block in blocks_from(first):
                if block.allocated or run_bytes >= size:
                    break
                run_bytes += block.size
            if run_bytes >= size:
                return first
        address = self._new_address(_EXPANDABLE_RANGE_BYTES)
        segment = ExpandableSegment(address, pool.page_bytes)
        whole = Block(address=address, size=_EXPANDABLE_RANGE_BYTES, pool=pool, segment=segment)
        whole.mapped = False
        self._first_blocks[address] = whole
        pool.add_unmapped(whole)
        return whole

    def _map(self, block: Block, size: int) -> Block:
        free, mapped = block.pool.map(block, size)
        self._reserve(mapped)
        return free

    def _unmap(self, block: Block) -> None:
        segment = block.segment
        assert segment is not None
        self.reserved_bytes -= block.pool.unmap(block)
        first = self._first_blocks[segment.address]
        if not first.mapped and not first.is_split:
            del self._first_blocks[segment.address]  # release_expandable_segment


def _skip_growing(free: list[tuple[int, int, Block]], index: int) -> int:
    """Return the index of the free block to use in expandable segments (`get_free_block`).

    A block followed by unmapped addresses can grow, so a slightly larger block that cannot is used
    first.
    """

    def grown_bytes(block: Block) -> int:
        after = block.next
        return block.size + (after.size if after is not None and not after.mapped else 0)

    while index + 1 < len(free) and grown_bytes(free[index + 1][2]) < grown_bytes(free[index][2]):
        index += 1
    return index
