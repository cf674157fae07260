"""Blocks of the caching allocator: how they are split, merged, mapped and unmapped.

A segment is a contiguous range of addresses. It is divided into blocks, which form a doubly linked
list in the order of their addresses. A block is allocated, free, or (in an expandable segment only)
not backed by memory. There are two pools: the free blocks of all segments for small requests, and
those of all segments for large requests.

    segment   | allocated | free | allocated |   unmapped ...          |
                            ^ in the pool       ^ in the pool's list of unmapped blocks

Two neighbouring blocks are never both free, and never both unmapped: they are merged at once.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass

from profiler.device_rules.caching_allocator.sizes import (
    MIN_BLOCK_BYTES,
    SMALL_BYTES,
    round_to_multiple,
)


@dataclass(frozen=True, slots=True)
class ExpandableSegment:
    """A range of addresses that is backed by memory page by page.

    Attributes:
        address: start of the range.
        page_bytes: size of a page.
    """

    address: int
    page_bytes: int


class Block:
    """A contiguous part of a segment.

    Attributes:
        address: start of the block.
        size: bytes of the block.
        pool: pool of its segment.
        segment: its segment if that is expandable, else None.
        allocated: whether it serves a request.
        mapped: whether it is backed by memory.
        prev, next: neighbours in the segment; None at its ends.
        free_since: value of the pool's counter of searches when it became free
            (``gc_count_base``); its age is the number of searches since.
    """

    __slots__ = (
        "address", "allocated", "free_since", "mapped", "next", "pool", "prev", "segment", "size",
    )  # fmt: skip

    def __init__(
        self, *, address: int, size: int, pool: Pool, segment: ExpandableSegment | None
    ) -> None:
        self.address = address
        self.size = size
        self.pool = pool
        self.segment = segment
        self.allocated = False
        self.mapped = True
        self.prev: Block | None = None
        self.next: Block | None = None
        self.free_since = 0

    @property
    def is_split(self) -> bool:
        """Whether the segment has other blocks."""
        return self.prev is not None or self.next is not None

    def cut_off_tail(self, size: int) -> Block:
        """Shorten the block to ``size`` bytes and return the rest as a new block after it."""
        tail = Block(
            address=self.address + size,
            size=self.size - size,
            pool=self.pool,
            segment=self.segment,
        )
        self.size = size
        tail.prev, tail.next = self, self.next
        if self.next is not None:
            self.next.prev = tail
        self.next = tail
        return tail

    def absorb_next(self) -> None:
        """Make one block of this and the next one."""
        absorbed = self.next
        assert absorbed is not None
        self.size += absorbed.size
        self.next = absorbed.next
        if absorbed.next is not None:
            absorbed.next.prev = self


class Pool:
    """One of two pools: free and unmapped blocks of all segments for small (or large) requests.

    Args:
        is_small: whether it serves requests up to 1 MiB.
        page_bytes: page size of its expandable segments.
        splits_always: whether a block is split whenever 512 bytes or more are left over: in the
            small pool, and in expandable segments.
        max_split_bytes: size from which blocks are never split.

    Attributes:
        free: (size, address, block), sorted: the order in which blocks are tried.
        unmapped: (address, block), sorted.
        searches: number of searches for a free block (``get_free_blocks_call_count``).
    """

    __slots__ = (
        "free", "is_small", "max_split_bytes", "page_bytes", "searches", "splits_always",
        "unmapped",
    )  # fmt: skip

    def __init__(
        self, *, is_small: bool, page_bytes: int, splits_always: bool, max_split_bytes: int
    ) -> None:
        self.is_small = is_small
        self.page_bytes = page_bytes
        self.splits_always = splits_always
        self.max_split_bytes = max_split_bytes
        self.free: list[tuple[int, int, Block]] = []
        self.unmapped: list[tuple[int, Block]] = []
        self.searches = 0

    def add(self, block: Block) -> None:
        """Add a free block."""
        block.free_since = self.searches
        insort(self.free, (block.size, block.address, block))

    def remove(self, block: Block) -> None:
        """Take out a free block."""
        del self.free[bisect_left(self.free, (block.size, block.address))]

    def add_unmapped(self, block: Block) -> None:
        """Add an unmapped block."""
        insort(self.unmapped, (block.address, block))

    def remove_unmapped(self, block: Block) -> None:
        """Take out an unmapped block."""
        del self.unmapped[bisect_left(self.unmapped, (block.address,))]

    # --- splitting and merging ---

    def split(self, block: Block, size: int) -> None:
        """Split a block that serves a request of ``size`` bytes, and free the rest.

        A block of the large pool is split only if more than 1 MiB is left over, because the large
        pool serves no smaller request (`should_split`). A rest that is not split off counts as
        allocated.
        """
        rest = block.size - size
        if self.splits_always:
            if rest < MIN_BLOCK_BYTES:
                return
        elif rest <= SMALL_BYTES or size >= self.max_split_bytes:
            return
        self.add(block.cut_off_tail(size))

    def merge(self, block: Block) -> Block:
        """Merge a free block with its free neighbours and add the result (`try_merge_blocks`)."""
        neighbour = block.prev
        if neighbour is not None and neighbour.mapped and not neighbour.allocated:
            self.remove(neighbour)
            neighbour.absorb_next()
            block = neighbour
        neighbour = block.next
        if neighbour is not None and neighbour.mapped and not neighbour.allocated:
            self.remove(neighbour)
            block.absorb_next()
        self.add(block)
        return block

    # --- expandable segments ---

    def map(self, block: Block, size: int) -> tuple[Block, int]:
        """Back the start of an unmapped block by whole pages (`map_block`).

        Args:
            block: an unmapped block.
            size: bytes to back at least.

        Returns:
            The free block that contains the new memory, and the bytes of the new memory.
        """
        assert block.segment is not None
        mapped = min(round_to_multiple(size, block.segment.page_bytes), block.size)
        self.remove_unmapped(block)
        if mapped < block.size:
            rest = block.cut_off_tail(mapped)
            rest.mapped = False
            self.add_unmapped(rest)
        block.mapped = True
        return self.merge(block), mapped

    def unmap(self, block: Block) -> int:
        """Release the whole pages inside a free block (`unmap_block`).

        Returns:
            The bytes released.
        """
        segment = block.segment
        assert segment is not None
        page = segment.page_bytes
        start = segment.address + round_to_multiple(block.address - segment.address, page)
        end = segment.address + (block.address + block.size - segment.address) // page * page
        if start >= end:
            return 0
        self.remove(block)
        # The bytes before the first and after the last whole page stay, as free blocks.
        if end < block.address + block.size:
            self.add(block.cut_off_tail(end - block.address))
        if start > block.address:
            head, block = block, block.cut_off_tail(start - block.address)
            self.add(head)
        block.mapped = False
        if block.prev is not None and not block.prev.mapped:
            block = block.prev
            self.remove_unmapped(block)
            block.absorb_next()
        if block.next is not None and not block.next.mapped:
            self.remove_unmapped(block.next)
            block.absorb_next()
        # otherwise nothing of the segment is mapped, and it is released (CachingAllocator._unmap)
        if block.is_split:
            self.add_unmapped(block)
        return end - start


def blocks_from(block: Block | None) -> Iterator[Block]:
    """Yield a block and those after it in its segment."""
    while block is not None:
        yield block
        block = block.next


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One contiguous range of reserved memory, as `torch.cuda.memory_snapshot()` lists it.

    Attributes:
        address: start of the range; modelled addresses ascend in the order of fetching.
        total_bytes: bytes of the range.
        allocated_bytes: bytes of its allocated blocks.
        is_small: whether it belongs to the pool of requests up to 1 MiB.
        is_expandable: whether it is a mapped range of an expandable segment.
        blocks: (bytes, whether allocated) of every block, by address.
    """

    address: int
    total_bytes: int
    allocated_bytes: int
    is_small: bool
    is_expandable: bool
    blocks: tuple[tuple[int, bool], ...]

    @classmethod
    def of(cls, blocks: list[Block]) -> Segment:
        """Return the record of neighbouring mapped blocks."""
        return cls(
            address=blocks[0].address,
            total_bytes=sum(block.size for block in blocks),
            allocated_bytes=sum(block.size for block in blocks if block.allocated),
            is_small=blocks[0].pool.is_small,
            is_expandable=blocks[0].segment is not None,
            blocks=tuple((block.size, block.allocated) for block in blocks),
        )
