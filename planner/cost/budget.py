"""The memory budget: a limit on device bytes, and its conversion to a limit on live bytes.

A budget (``--vram``, ``budget_bytes``) is a number of *device bytes*: segments reserved by the
caching allocator of PyTorch plus the CUDA context. It is compared with ``needed_bytes`` of a
report. On a CPU nothing is reserved, and it is compared with the peak of live bytes.

A placement policy works with *live bytes*: bytes of tensors. ``live_budget`` is the only function
that converts a budget:

    live budget = budget - context bytes - unused bytes of the caching allocator

``smallest_budget`` inverts it numerically, so that the two cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from profiler.arrays import Floats, Ints
from profiler.records import Report
from profiler.units import GIB, MIB, DeviceBytes, LiveBytes


def needed_bytes(report: Report) -> DeviceBytes:
    """Return the bytes of a report that a budget is compared with (``Memory.compared_bytes``)."""
    return DeviceBytes(report.memory.compared_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorOverhead:
    """Bytes that the caching allocator takes beside live tensors, at one micro-batch.

    Attributes:
        allocated: ratio of allocated block bytes to live bytes at the peak (>= 1, from rounding).
        unused_bytes: bytes of reserved segments beyond the peak of live bytes (from rounding and
            fragmentation).
    """

    allocated: float
    unused_bytes: int

    def reserved_bytes(self, live_bytes: float) -> int:
        """Return the reserved bytes at a peak of live bytes."""
        return round(live_bytes) + self.unused_bytes

    def live_bytes(self, reserved_bytes: int) -> int:
        """Return the peak of live bytes at which so many bytes are reserved."""
        return reserved_bytes - self.unused_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorReading:
    """Bytes of a step on the model of the caching allocator.

    Attributes:
        live_bytes: peak of live bytes, workspaces included.
        allocated_bytes: peak of the allocated blocks.
        reserved_bytes: peak of the reserved segments.
    """

    live_bytes: int
    allocated_bytes: int
    reserved_bytes: int

    @property
    def overhead(self) -> AllocatorOverhead:
        """The bytes beside live tensors."""
        return AllocatorOverhead(
            allocated=self.allocated_bytes / self.live_bytes,
            unused_bytes=self.reserved_bytes - self.live_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReadings:
    """Readings by name, in the arrays that ``Store`` keeps.

    Attributes:
        names: [n] names.
        nbytes: [n, 3] live, allocated and reserved bytes.
    """

    names: npt.NDArray[np.str_]
    nbytes: Ints

    @classmethod
    def of(cls, readings: Mapping[str, AllocatorReading]) -> Self:
        """Return the record of readings by name."""
        rows = [(r.live_bytes, r.allocated_bytes, r.reserved_bytes) for r in readings.values()]
        return cls(
            names=np.array(list(readings), dtype=np.str_), nbytes=np.array(rows, dtype=np.int64)
        )

    def readings(self) -> dict[str, AllocatorReading]:
        """Return the readings by name."""
        return {
            name: AllocatorReading(
                live_bytes=live, allocated_bytes=allocated, reserved_bytes=reserved
            )
            for name, (live, allocated, reserved) in zip(
                self.names.tolist(), self.nbytes.tolist(), strict=True
            )
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class OverheadProfile:
    """Overheads of the caching allocator under one placement, in the arrays that ``Store`` keeps.

    Between two micro-batches the unused bytes rise and fall by several percent of the peak, because
    each block size fits other holes. They are therefore read at each micro-batch.

    Attributes:
        micro_batches: [n] micro-batches.
        allocated: [n] ratio of allocated block bytes to live bytes at the peak (>= 1).
        unused_bytes: [n] unused bytes.
    """

    micro_batches: Ints
    allocated: Floats
    unused_bytes: Floats

    @classmethod
    def of(cls, readings: Mapping[int, AllocatorOverhead]) -> Self:
        """Return the profile of readings by micro-batch."""
        return cls(
            micro_batches=np.array(list(readings), dtype=np.int64),
            allocated=np.array([found.allocated for found in readings.values()]),
            unused_bytes=np.array([float(found.unused_bytes) for found in readings.values()]),
        )

    def readings(self) -> dict[int, AllocatorOverhead]:
        """Return the readings by micro-batch."""
        return {
            micro_batch: AllocatorOverhead(allocated=allocated, unused_bytes=round(unused))
            for micro_batch, allocated, unused in zip(
                self.micro_batches.tolist(),
                self.allocated.tolist(),
                self.unused_bytes.tolist(),
                strict=True,
            )
        }


def live_budget(
    budget_bytes: DeviceBytes, *, context_bytes: int, overhead: AllocatorOverhead | None
) -> LiveBytes:
    """Convert a budget to live bytes; on a GPU at least 1, since a solver needs a positive budget.

    Args:
        budget_bytes: budget in device bytes.
        context_bytes: bytes of the CUDA context, 0 on a CPU.
        overhead: overhead of the caching allocator; None on a CPU, where live bytes are compared
            with the budget as they are.
    """
    if overhead is None:
        return LiveBytes(budget_bytes)
    return LiveBytes(max(1, overhead.live_bytes(budget_bytes - context_bytes)))


def smallest_budget(
    live_bytes: LiveBytes, to_live: Callable[[DeviceBytes], LiveBytes]
) -> DeviceBytes:
    """Return the smallest budget whose live budget is at least ``live_bytes``, by bisection.

    Args:
        live_bytes: live bytes that must fit.
        to_live: conversion of a budget to live bytes, monotone.
    """
    low, high = 0, 1
    while to_live(DeviceBytes(high)) < live_bytes:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if to_live(DeviceBytes(middle)) < live_bytes:
            low = middle
        else:
            high = middle
    return DeviceBytes(high)


def round_up_to_printed(size: int) -> DeviceBytes:
    """Round up to the last digit that ``format_bytes`` prints: the printed size is then enough."""
    step = GIB / 100 if size >= 0.9995 * GIB else MIB
    return DeviceBytes(math.floor(math.ceil(size / step) * step))
