"""The block size of a request and the segment size of a block.

Constants: ``c10/core/AllocatorConfig.h`` of torch 2.15.
"""

from __future__ import annotations

from profiler.device_rules.caching_allocator.settings import (
    LARGE_SEGMENT_BYTES,
    MIN_LARGE_BYTES,
    ROUNDUP_INTERVALS,
    AllocatorSettings,
)
from profiler.units import MIB

__all__ = ["LARGE_SEGMENT_BYTES", "MIN_BLOCK_BYTES", "round_size", "segment_size"]

MIN_BLOCK_BYTES = 512
"""Every block size is a multiple of this (kMinBlockSize)."""

SMALL_BYTES = 1 * MIB
"""Largest block of the small pool (kSmallSize)."""

SMALL_SEGMENT_BYTES = 2 * MIB
"""Segment of the small pool (kSmallBuffer)."""

_ROUND_LARGE_BYTES = 2 * MIB  # kRoundLarge


def round_size(nbytes: int, settings: AllocatorSettings) -> int:
    """Return the block size of a request (`round_size`, `roundup_power2_next_division`)."""
    if nbytes < MIN_BLOCK_BYTES:
        return MIN_BLOCK_BYTES
    # Interval 0 contains all sizes below 2 MiB, whose bit length is at most 21.
    interval = min(max(0, nbytes.bit_length() - 21), ROUNDUP_INTERVALS - 1)
    divisions = settings.roundup_power2_divisions[interval]
    is_power_of_two = nbytes & (nbytes - 1) == 0
    if divisions > 1 and nbytes > MIN_BLOCK_BYTES * divisions and not is_power_of_two:
        floor = 1 << (nbytes.bit_length() - 1)
        return round_to_multiple(nbytes, floor // divisions)
    return round_to_multiple(nbytes, MIN_BLOCK_BYTES)


def segment_size(size: int, settings: AllocatorSettings) -> int:
    """Return the bytes fetched from the driver for a block (`get_allocation_size`)."""
    if size <= SMALL_BYTES:
        return SMALL_SEGMENT_BYTES
    if size < MIN_LARGE_BYTES:
        return settings.large_segment_size_bytes
    return round_to_multiple(size, _ROUND_LARGE_BYTES)


def round_to_multiple(value: int, step: int) -> int:
    """Return the smallest multiple of a step that is not below a value."""
    return -(-value // step) * step
