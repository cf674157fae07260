"""A model of PyTorch's CUDA caching allocator, fed by mallocs and frees.

What `torch.cuda.max_memory_allocated()` and `max_memory_reserved()` report is not the sum of the
tensors: sizes are rounded, small and large requests live in separate pools, memory is taken from
the driver in segments and only given back when it runs out. This module replays those rules on a
stream of events, without a GPU and without torch.

Pieces: `AllocatorSettings` (what ``PYTORCH_CUDA_ALLOC_CONF`` says), `configuration` (what it says
here, or is made to say), `CachingAllocator` (the state), `replay` (a whole stream of events to an
`AllocatorReport`).

Source of the rules: pytorch ``c10/cuda/CUDACachingAllocator.cpp``, struct
``DeviceCachingAllocator``, read at commit 001074d25084 and again in a copy of 2026, which has
``large_segment_size()`` and ``try_mempool_fallback`` (the rules below are the same in both);
constants and options: ``c10/core/AllocatorConfig.h`` of the installed torch 2.15 and the ``.cpp``
beside it. 2.15 turned the constant ``kLargeBuffer`` (20 MiB) into the option
``large_segment_size_mb``.

    rule                                                   function of the source
    sizes are multiples of 512 B                           round_size
    ... or of a fraction of a power of two                 roundup_power2_next_division
    <= 1 MiB: small pool                                   get_pool
    segments of 2 MiB, 20 MiB, or multiples of 2 MiB       get_allocation_size
    the smallest free block that fits, lowest address      get_free_block, BlockComparatorSize
    oversize blocks only for oversize requests             get_free_block
    when to cut a block in two                             should_split, alloc_found_block
    free neighbours become one block                       free_block, try_merge_blocks
    expandable segments                                    find_expandable_block, map_block,
                                                           try_allocate_expandable_block
    old blocks go back before new ones are fetched         garbage_collect_cached_blocks
    the cap, release, retry, out of memory                 malloc, alloc_block,
                                                           release_available_cached_blocks,
                                                           release_cached_blocks, unmap_block

What it does not know: the addresses the driver gives (assumed to ascend, so the older segment wins
a tie in size), a second stream, CUDA graphs and private pools, ``backend:cudaMallocAsync``, and
memory of other processes. The cap is what `torch.cuda.set_per_process_memory_fraction` sets.

Complexity: O(log n) comparisons and one O(n) memory move per event, n free blocks of the pool.
"""

from __future__ import annotations

import os
import re
import sys
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass, fields

from profiler.errors import UsageError
from profiler.units import MIB, format_bytes

# c10/core/AllocatorConfig.h, torch 2.15
MIN_BLOCK_BYTES = 512  # kMinBlockSize

SMALL_BYTES = 1 * MIB  # kSmallSize: the largest request of the small pool

SMALL_SEGMENT_BYTES = 2 * MIB  # kSmallBuffer

MIN_LARGE_BYTES = 10 * MIB  # kMinLargeAlloc: from here on a request has a segment of its own

ROUND_LARGE_BYTES = 2 * MIB  # kRoundLarge

LARGE_SEGMENT_BYTES = 20 * MIB  # large_segment_size_ (kLargeBuffer before it was an option)

ROUNDUP_INTERVALS = 16  # AllocatorConfig.cpp kRoundUpPowerOfTwoIntervals: from 1 MiB to 64 GiB

# Address space of one expandable segment. The source takes 9/8 of the device's memory; only its
# being larger than any mapped range matters here.
EXPANDABLE_RESERVE_BYTES = 1 << 42

Event = tuple[str, int, int]  # kind, key, bytes


class SimulatedOutOfMemory(Exception):  # noqa: N818 - named after what it simulates
    """The modelled allocator could not serve a request under its cap.

    Args:
        requested_bytes: the request, as it was made.
        allocated_bytes: what live tensors held.
        reserved_bytes: what the allocator still held after it had released its cache.
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


# --- settings -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorSettings:
    """The options of ``PYTORCH_CUDA_ALLOC_CONF`` that change what is reserved.

    Args:
        expandable_segments: grow one segment per pool instead of fetching many.
        large_segment_size_bytes: segment of requests between 1 and 10 MiB.
        max_split_size_bytes: blocks of this size or more are never cut; None: no bound.
        max_non_split_rounding_bytes: how much larger than an oversize request the block it is given
            may be; None: `large_segment_size_bytes`, as in AllocatorConfig.cpp `parseArgs`.
        roundup_power2_divisions: for sizes from 2^i MiB on, into how many parts the way to the next
            power of two is divided; 16 entries, 0 or 1 for none.
        garbage_collection_threshold: share of the cap above which old blocks are given back before
            new memory is fetched; 0: never.
        per_process_memory_fraction: share of the device's memory the process may use. The caller
            turns it into `limit_bytes`.
    """

    expandable_segments: bool = False
    large_segment_size_bytes: int = LARGE_SEGMENT_BYTES
    max_split_size_bytes: int | None = None
    max_non_split_rounding_bytes: int | None = None
    roundup_power2_divisions: tuple[int, ...] = (0,) * ROUNDUP_INTERVALS
    garbage_collection_threshold: float = 0.0
    per_process_memory_fraction: float = 1.0

    def __post_init__(self) -> None:
        # the bounds of AllocatorConfig.cpp parse*
        if self.large_segment_size_bytes <= MIN_LARGE_BYTES:
            _refuse("large_segment_size_mb", self.large_segment_size_bytes, "more than 10 MiB")
        for name in ("max_split_size_bytes", "max_non_split_rounding_bytes"):
            size: int | None = getattr(self, name)
            if size is not None and size < self.large_segment_size_bytes:
                _refuse(name.replace("_bytes", "_mb"), size, "at least the large segment size")
        divisions = self.roundup_power2_divisions
        if len(divisions) != ROUNDUP_INTERVALS or any(d < 0 or d & (d - 1) for d in divisions):
            _refuse("roundup_power2_divisions", divisions, "16 powers of two (or 0)")
        if not 0 <= self.garbage_collection_threshold < 1:
            _refuse("garbage_collection_threshold", self.garbage_collection_threshold, "in (0, 1)")
        if not 0 < self.per_process_memory_fraction <= 1:
            _refuse("per_process_memory_fraction", self.per_process_memory_fraction, "in (0, 1]")

    @classmethod
    def parse(cls, text: str) -> AllocatorSettings:
        """Read a ``PYTORCH_CUDA_ALLOC_CONF`` string (AllocatorConfig.cpp `parseArgs`).

        Options that leave device memory as it is (pinned memory, locks) are accepted and dropped.

        Raises:
            UsageError: an unknown option, a value out of range, or the cudaMallocAsync backend.
        """
        found: dict[str, object] = {}
        for name, value in _options(text):
            if name in _MEBIBYTE_OPTIONS:
                found[_MEBIBYTE_OPTIONS[name]] = _number(name, value) * MIB
            elif name in ("garbage_collection_threshold", "per_process_memory_fraction"):
                found[name] = _share(name, value)
            elif name == "expandable_segments":
                found[name] = _boolean(name, value)
            elif name == "roundup_power2_divisions":
                found[name] = _parse_divisions(value)
            elif name == "backend" and value == "native":
                continue
            elif not _WITHOUT_EFFECT.match(name):
                _refuse(name, value, f"one of {', '.join(_known_options())}, or backend:native")
        return cls(**found)  # type: ignore[arg-type]


_CONFIGURED_BY = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")

DEFAULT_CONFIGURATION = "expandable_segments:True"
"""What is planned for and trained under where the environment says nothing else. Segments of fixed
size are left with holes: ResNet-18 with 128 images, every other unit recomputed, reserves 2.9 GiB
for a peak of 1.7 GiB; with segments that grow 2.2 (studies/hollow_gpu)."""


def configuration() -> str:
    """Return the allocator's options: the environment's, else ``DEFAULT_CONFIGURATION``."""
    given = (os.environ.get(name) for name in _CONFIGURED_BY)
    return next((text for text in given if text), DEFAULT_CONFIGURATION)


def configure(environment: MutableMapping[str, str]) -> None:
    """Write the options where PyTorch reads them, before it uses CUDA for the first time."""
    if not any(environment.get(name) for name in _CONFIGURED_BY):
        environment[_CONFIGURED_BY[-1]] = DEFAULT_CONFIGURATION


_MEBIBYTE_OPTIONS = {
    "large_segment_size_mb": "large_segment_size_bytes",
    "max_split_size_mb": "max_split_size_bytes",
    "max_non_split_rounding_mb": "max_non_split_rounding_bytes",
}

_WITHOUT_EFFECT = re.compile(
    "pinned_|release_lock_on_|graph_capture_|throw_on_cudamalloc_oom|expandable_segments_reserve"
)


def _known_options() -> list[str]:
    return sorted([*_MEBIBYTE_OPTIONS, *(
        field.name for field in fields(AllocatorSettings) if not field.name.endswith("_bytes")
    )])  # fmt: skip


def _refuse(name: str, got: object, wanted: str) -> None:
    raise UsageError(f"allocator option {name} must be {wanted}, got {got!r}")


def _options(text: str) -> Iterator[tuple[str, str]]:
    """Split ``a:1,b:[2:3,>:4]`` into names and values; a list keeps its brackets."""
    rest = re.sub(r"\s", "", text)
    while rest:
        match = re.match(r"([^:,\[\]]+):(\[[^\]]*\]|[^,\[\]]+)(?:,|$)", rest)
        if match is None:
            raise UsageError(f"allocator options must look like name:value,..., got {text!r}")
        yield match.group(1), match.group(2)
        rest = rest[match.end() :]


def _number(name: str, value: str) -> int:
    if not value.isdigit():
        _refuse(name, value, "a whole number")
    return int(value)


def _share(name: str, value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        _refuse(name, value, "a number between 0 and 1")
    return share


def _boolean(name: str, value: str) -> bool:
    if value not in ("True", "False"):
        _refuse(name, value, "True or False")
    return value == "True"


def _parse_divisions(value: str) -> tuple[int, ...]:
    """AllocatorConfig.cpp `parseRoundUpPower2Divisions`: ``4`` or ``[64:8,256:4,>:1]``."""
    name = "roundup_power2_divisions"
    if not value.startswith("["):
        if value == "0":
            _refuse(name, value, "a power of two")
        return (_number(name, value),) * ROUNDUP_INTERVALS
    divisions = [0] * ROUNDUP_INTERVALS
    last = -1
    for entry in value[1:-1].split(","):
        boundary, _, count_text = entry.partition(":")
        count = _number(name, count_text)
        if boundary == ">":
            divisions[last + 1 :] = [count] * (ROUNDUP_INTERVALS - last - 1)
            continue
        bound = _number(name, boundary)
        if bound < 1 or bound & (bound - 1):
            _refuse(name, entry, "a list whose bounds are powers of two")
        index = min(bound.bit_length() - 1, ROUNDUP_INTERVALS - 1)
        if last < 0:
            divisions[:index] = [count] * index
        divisions[index] = count
        last = index
    return tuple(divisions)


def round_size(nbytes: int, settings: AllocatorSettings) -> int:
    """Bytes of the block a request needs (`round_size`, `roundup_power2_next_division`)."""
    if nbytes < MIN_BLOCK_BYTES:
        return MIN_BLOCK_BYTES
    interval = min(max(0, nbytes.bit_length() - 21), ROUNDUP_INTERVALS - 1)
    divisions = settings.roundup_power2_divisions[interval]
    if divisions > 1 and nbytes > MIN_BLOCK_BYTES * divisions and nbytes & (nbytes - 1):
        floor = 1 << (nbytes.bit_length() - 1)
        return _round_up(nbytes, floor // divisions)
    return _round_up(nbytes, MIN_BLOCK_BYTES)


def segment_size(size: int, settings: AllocatorSettings) -> int:
    """Bytes fetched from the driver for a block of `size` (`get_allocation_size`)."""
    if size <= SMALL_BYTES:
        return SMALL_SEGMENT_BYTES
    if size < MIN_LARGE_BYTES:
        return settings.large_segment_size_bytes
    return _round_up(size, ROUND_LARGE_BYTES)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


# --- state ----------------------------------------------------------------------------------------


class _Block:
    """A run of bytes of one segment: live, free, or (expandable only) not backed by memory."""

    __slots__ = (
        "address", "allocated", "born", "mapped", "next", "pool", "prev", "segment", "size",
    )  # fmt: skip

    def __init__(
        self, *, address: int, size: int, pool: _Pool, segment: _ExpandableSegment | None
    ) -> None:
        self.address = address
        self.size = size
        self.pool = pool
        self.segment = segment
        self.allocated = False
        self.mapped = True
        self.prev: _Block | None = None
        self.next: _Block | None = None
        self.born = 0  # gc_count_base: searches of the pool made before it became free

    @property
    def is_split(self) -> bool:
        return self.prev is not None or self.next is not None

    @property
    def is_free(self) -> bool:
        return self.mapped and not self.allocated

    def insert_after(self, other: _Block) -> None:
        other.prev = self
        other.next = self.next
        if self.next is not None:
            self.next.prev = other
        self.next = other

    def absorb_next(self) -> None:
        other = self.next
        assert other is not None
        self.size += other.size
        self.next = other.next
        if other.next is not None:
            other.next.prev = self


class _Pool:
    """Free blocks ordered by (size, address), and unmapped ones by address."""

    __slots__ = ("cuts_all", "free", "is_small", "page_bytes", "searches", "unmapped")

    def __init__(self, *, is_small: bool, page_bytes: int, cuts_all: bool) -> None:
        self.is_small = is_small
        self.page_bytes = page_bytes
        self.cuts_all = cuts_all
        self.free: list[tuple[int, int, _Block]] = []
        self.unmapped: list[tuple[int, _Block]] = []
        self.searches = 0  # get_free_blocks_call_count

    def add(self, block: _Block) -> None:
        block.born = self.searches
        insort(self.free, (block.size, block.address, block))

    def remove(self, block: _Block) -> None:
        del self.free[bisect_left(self.free, (block.size, block.address))]

    def add_unmapped(self, block: _Block) -> None:
        insort(self.unmapped, (block.address, block))

    def remove_unmapped(self, block: _Block) -> None:
        del self.unmapped[bisect_left(self.unmapped, (block.address,))]


@dataclass(frozen=True, slots=True)
class _ExpandableSegment:
    """A range of addresses, backed by memory page by page."""

    address: int
    page_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One contiguous range of reserved memory, as `torch.cuda.memory_snapshot()` lists it.

    Args:
        address: where it starts (modelled: segments ascend in the order they were fetched).
        total_bytes: its size.
        allocated_bytes: what live blocks of it hold.
        is_small: of the pool of requests up to 1 MiB.
        is_expandable: a mapped range of an expandable segment.
        blocks: (bytes, live) of every block, by address.
    """

    address: int
    total_bytes: int
    allocated_bytes: int
    is_small: bool
    is_expandable: bool
    blocks: tuple[tuple[int, bool], ...]


class CachingAllocator:
    """The allocator of one device and one stream.

    Args:
        settings: the options it runs under.
        limit_bytes: the most it may reserve (`set_per_process_memory_fraction`); None: no cap.
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
        self.num_ooms = 0
        expandable = self.settings.expandable_segments
        self._small = _Pool(is_small=True, page_bytes=SMALL_SEGMENT_BYTES, cuts_all=True)
        self._large = _Pool(
            is_small=False, page_bytes=self.settings.large_segment_size_bytes, cuts_all=expandable
        )
        self._live: dict[int, _Block | None] = {}
        self._heads: dict[int, _Block] = {}  # the first block of each segment, by its address
        self._next_address = EXPANDABLE_RESERVE_BYTES
        self._max_split = self.settings.max_split_size_bytes or sys.maxsize
        self._rounding = (
            self.settings.max_non_split_rounding_bytes or self.settings.large_segment_size_bytes
        )
        self._rounds_up = any(d > 1 for d in self.settings.roundup_power2_divisions)
        self._collects = limit_bytes is not None and self.settings.garbage_collection_threshold > 0

    # --- events ---

    def malloc(self, key: int, nbytes: int) -> int:
        """Serve a request; `key` names it until it is freed.

        Returns:
            The bytes of its block, which count as allocated: what is left of a block is only cut
            off where it could serve another request (`should_split`).

        Raises:
            SimulatedOutOfMemory: it does not fit under the cap.
            ValueError: `key` is live, or the size is negative.
        """
        if key in self._live or nbytes < 0:
            raise ValueError(f"cannot malloc {nbytes} B as key {key}: it is live or negative")
        if nbytes == 0:  # NativeCachingAllocator::allocate hands out a null pointer
            self._live[key] = None
            return 0
        if self._rounds_up:
            size = round_size(nbytes, self.settings)
        else:
            size = (nbytes + MIN_BLOCK_BYTES - 1) & -MIN_BLOCK_BYTES
        pool = self._small if size <= SMALL_BYTES else self._large
        block = self._take_free(pool, size) or self._fetch(pool, size, nbytes)
        self._cut(block, size)
        block.allocated = True
        self._live[key] = block
        self.allocated_bytes += block.size
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)
        return block.size

    def free(self, key: int) -> None:
        """Put the block of `key` back into its pool, one with its free neighbours (`free_block`).

        Raises:
            ValueError: `key` is not live.
        """
        try:
            block = self._live.pop(key)
        except KeyError:
            raise ValueError(f"key {key} is not live; malloc it first") from None
        if block is None:
            return
        self.allocated_bytes -= block.size
        block.allocated = False
        self._merge_and_add(block)

    def empty_cache(self) -> None:
        """Give every unused segment back to the driver (`release_cached_blocks`)."""
        for pool in (self._large, self._small):
            for _, _, block in list(pool.free):
                if block.segment is not None:
                    self._unmap(block)
                elif not block.is_split:
                    self._release(block)

    def reset_peak(self) -> None:
        """Start the peaks anew from what is held now (`resetPeakStats`)."""
        self.peak_allocated_bytes = self.allocated_bytes
        self.peak_reserved_bytes = self.reserved_bytes

    # --- what it holds ---

    @property
    def fragmentation_bytes(self) -> int:
        """Peak reserved minus peak allocated: memory taken from the device and never filled."""
        return self.peak_reserved_bytes - self.peak_allocated_bytes

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Every contiguous range of reserved memory, by address (`snapshot`)."""
        found: list[Segment] = []
        for head in self._heads.values():
            run: list[_Block] = []
            for block in _chain(head):
                if block.mapped:
                    run.append(block)
                elif run:
                    found.append(_describe(run))
                    run = []
            if run:
                found.append(_describe(run))
        return tuple(sorted(found, key=lambda segment: segment.address))

    @property
    def num_segments(self) -> int:
        """How many contiguous ranges are reserved."""
        return len(self.segments)

    # --- serving a request ---

    def _take_free(self, pool: _Pool, size: int) -> _Block | None:
        """The smallest free block that may serve `size`, out of its pool (`get_free_block`)."""
        pool.searches += 1
        free = pool.free
        index = bisect_left(free, (size,))
        if index == len(free):
            return None
        if self.settings.expandable_segments:
            index = _least_expandable(free, index)
        found = free[index][0]
        if size < self._max_split <= found:
            return None
        if size >= self._max_split and found >= size + self._rounding:
            return None
        return free.pop(index)[2]

    def _fetch(self, pool: _Pool, size: int, nbytes: int) -> _Block:
        """New memory for `size`, out of its pool (the second half of `malloc`)."""
        if self._collects:
            self._collect_garbage()
        fetched = segment_size(size, self.settings)
        if not (
            self._fits(fetched) or (self._release_oversize(pool, size) and self._fits(fetched))
        ):
            self.empty_cache()
            self.num_alloc_retries += 1
        if not self._fits(fetched):
            self.num_ooms += 1
            assert self.limit_bytes is not None
            raise SimulatedOutOfMemory(
                requested_bytes=nbytes,
                allocated_bytes=self.allocated_bytes,
                reserved_bytes=self.reserved_bytes,
                limit_bytes=self.limit_bytes,
            )
        if self.settings.expandable_segments:
            return self._expand(pool, size)
        block = _Block(address=self._new_address(fetched), size=fetched, pool=pool, segment=None)
        self._heads[block.address] = block
        self._reserve(fetched)
        return block

    def _fits(self, fetched: int) -> bool:
        """Whether the cap allows it (`alloc_block`, which compares before any page is rounded)."""
        return self.limit_bytes is None or self.reserved_bytes + fetched <= self.limit_bytes

    def _reserve(self, nbytes: int) -> None:
        self.reserved_bytes += nbytes
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)

    def _new_address(self, nbytes: int) -> int:
        address = self._next_address
        # a gap of one page keeps neighbouring segments apart
        self._next_address += _round_up(nbytes, SMALL_SEGMENT_BYTES) + SMALL_SEGMENT_BYTES
        return address

    def _cut(self, block: _Block, size: int) -> None:
        """Leave `size` bytes in `block` and free the rest, if the rules say so (`should_split`)."""
        rest = block.size - size
        pool = block.pool
        if pool.cuts_all:
            if rest < MIN_BLOCK_BYTES:
                return
        elif rest <= SMALL_BYTES or size >= self._max_split:
            return
        remaining = _Block(
            address=block.address + size, size=rest, pool=pool, segment=block.segment
        )
        block.size = size
        block.insert_after(remaining)
        pool.add(remaining)

    def _merge_and_add(self, block: _Block) -> _Block:
        """Make one block of a free one and its free neighbours (`try_merge_blocks`)."""
        pool = block.pool
        neighbour = block.prev
        if neighbour is not None and neighbour.mapped and not neighbour.allocated:
            pool.remove(neighbour)
            neighbour.absorb_next()
            block = neighbour
        neighbour = block.next
        if neighbour is not None and neighbour.mapped and not neighbour.allocated:
            pool.remove(neighbour)
            block.absorb_next()
        pool.add(block)
        return block

    # --- giving memory back ---

    def _release(self, block: _Block) -> None:
        """Give a whole segment back (`release_block`)."""
        block.pool.remove(block)
        del self._heads[block.address]
        self.reserved_bytes -= block.size

    def _release_oversize(self, pool: _Pool, size: int) -> bool:
        """Give back blocks that only oversize requests may use; whether that was enough for `size`.

        Source: `release_available_cached_blocks`: one that is large enough, else the largest ones.
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
        """Give back large blocks of at least average age (`garbage_collect_cached_blocks`)."""
        assert self.limit_bytes is not None
        threshold = int(self.settings.garbage_collection_threshold * self.limit_bytes)
        target = self.reserved_bytes - threshold
        pool = self._large
        kept = [block for _, _, block in pool.free if not block.is_split]
        while target > 0 and kept:
            average = sum(pool.searches - block.born for block in kept) / len(kept)
            old = [block for block in kept if pool.searches - block.born >= average]
            for block in old:
                target -= block.size
                self._release(block)
            kept = [block for block in kept if pool.searches - block.born < average]

    # --- expandable segments ---

    def _expand(self, pool: _Pool, size: int) -> _Block:
        """A free block of at least `size`, made by mapping (`try_allocate_expandable_block`)."""
        block = self._find_expandable(pool, size)
        if not block.mapped:
            block = self._map(block, min(block.size, size))
        while block.size < size:
            unmapped = block.next
            assert unmapped is not None
            block = self._map(unmapped, min(size - block.size, unmapped.size))
        pool.remove(block)
        return block

    def _find_expandable(self, pool: _Pool, size: int) -> _Block:
        """The lowest run of free and unmapped blocks of `size` (`find_expandable_block`)."""
        for _, unmapped in pool.unmapped:
            first = unmapped
            if first.prev is not None and not first.prev.allocated:
                first = first.prev
            run = 0
            for block in _chain(first):
                if block.allocated or run >= size:
                    break
                run += block.size
            if run >= size:
                return first
        address = self._new_address(EXPANDABLE_RESERVE_BYTES)
        segment = _ExpandableSegment(address, pool.page_bytes)
        whole = _Block(address=address, size=EXPANDABLE_RESERVE_BYTES, pool=pool, segment=segment)
        whole.mapped = False
        self._heads[address] = whole
        pool.add_unmapped(whole)
        return whole

    def _map(self, block: _Block, size: int) -> _Block:
        """Back the start of an unmapped block by whole pages (`map_block`, `ExpandableSegment`)."""
        pool = block.pool
        assert block.segment is not None
        mapped = min(_round_up(size, block.segment.page_bytes), block.size)
        pool.remove_unmapped(block)
        if mapped < block.size:
            rest = _Block(
                address=block.address + mapped,
                size=block.size - mapped,
                pool=pool,
                segment=block.segment,
            )
            rest.mapped = False
            block.size = mapped
            block.insert_after(rest)
            pool.add_unmapped(rest)
        block.mapped = True
        self._reserve(mapped)
        return self._merge_and_add(block)

    def _unmap(self, block: _Block) -> None:
        """Give back the whole pages inside a free block (`unmap_block`)."""
        pool, segment = block.pool, block.segment
        assert segment is not None
        page = segment.page_bytes
        start = segment.address + _round_up(block.address - segment.address, page)
        end = segment.address + (block.address + block.size - segment.address) // page * page
        if start >= end:
            return
        pool.remove(block)
        self.reserved_bytes -= end - start
        before, after = start - block.address, block.address + block.size - end
        if after:
            tail = _Block(address=end, size=after, pool=pool, segment=segment)
            block.insert_after(tail)
            pool.add(tail)
            block.size -= after
        if before:
            middle = _Block(address=start, size=block.size - before, pool=pool, segment=segment)
            block.insert_after(middle)
            block.size = before
            pool.add(block)
            block = middle
        block.mapped = False
        self._merge_unmapped(block)

    def _merge_unmapped(self, block: _Block) -> None:
        """Make one block of neighbouring unmapped ones; drop a segment that holds nothing."""
        pool = block.pool
        if block.prev is not None and not block.prev.mapped:
            block = block.prev
            pool.remove_unmapped(block)
            block.absorb_next()
        if block.next is not None and not block.next.mapped:
            pool.remove_unmapped(block.next)
            block.absorb_next()
        if block.is_split:
            pool.add_unmapped(block)
        else:
            del self._heads[block.address]  # release_expandable_segment


def _least_expandable(free: list[tuple[int, int, _Block]], index: int) -> int:
    """Prefer a block that cannot grow over a smaller one that can (`get_free_block`)."""

    def reach(block: _Block) -> int:
        after = block.next
        return block.size + (after.size if after is not None and not after.mapped else 0)

    while index + 1 < len(free) and reach(free[index + 1][2]) < reach(free[index][2]):
        index += 1
    return index


def _chain(block: _Block | None) -> Iterator[_Block]:
    while block is not None:
        yield block
        block = block.next


def _describe(run: list[_Block]) -> Segment:
    return Segment(
        address=run[0].address,
        total_bytes=sum(block.size for block in run),
        allocated_bytes=sum(block.size for block in run if block.allocated),
        is_small=run[0].pool.is_small,
        is_expandable=run[0].segment is not None,
        blocks=tuple((block.size, block.allocated) for block in run),
    )


# --- replay ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorReport:
    """What a stream of events did to the allocator.

    Args:
        peak_allocated_bytes: `max_memory_allocated()`.
        peak_reserved_bytes: `max_memory_reserved()`.
        final_allocated_bytes: `memory_allocated()` after the last event.
        final_reserved_bytes: `memory_reserved()` after the last event.
        segments: what is reserved after the last event, by address.
        num_alloc_retries: how often the cache had to be released to serve a request.
    """

    peak_allocated_bytes: int
    peak_reserved_bytes: int
    final_allocated_bytes: int
    final_reserved_bytes: int
    segments: tuple[Segment, ...]
    num_alloc_retries: int

    @property
    def fragmentation_bytes(self) -> int:
        """Peak reserved minus peak allocated: memory taken from the device and never filled."""
        return self.peak_reserved_bytes - self.peak_allocated_bytes


def replay(
    events: Iterable[Event],
    settings: AllocatorSettings | None = None,
    *,
    limit_bytes: int | None = None,
) -> AllocatorReport:
    """Run a stream of events through a fresh allocator.

    Args:
        events: (kind, key, bytes); the bytes of a free, and the key and bytes of `empty_cache` and
            `reset_peak`, are not read.
        settings: the options it runs under.
        limit_bytes: the most it may reserve.

    Raises:
        SimulatedOutOfMemory: a request does not fit under the cap.
        ValueError: an unknown kind, a malloc of a live key or a free of one that is not.
    """
    allocator = CachingAllocator(settings, limit_bytes=limit_bytes)
    malloc, free = allocator.malloc, allocator.free
    for kind, key, nbytes in events:
        if kind == "malloc":
            malloc(key, nbytes)
        elif kind == "free":
            free(key)
        elif kind == "empty_cache":
            allocator.empty_cache()
        elif kind == "reset_peak":
            allocator.reset_peak()
        else:
            raise ValueError(f"unknown event {kind!r}; use malloc, free, empty_cache, reset_peak")
    return AllocatorReport(
        peak_allocated_bytes=allocator.peak_allocated_bytes,
        peak_reserved_bytes=allocator.peak_reserved_bytes,
        final_allocated_bytes=allocator.allocated_bytes,
        final_reserved_bytes=allocator.reserved_bytes,
        segments=allocator.segments,
        num_alloc_retries=allocator.num_alloc_retries,
    )
