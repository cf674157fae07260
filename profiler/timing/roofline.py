"""Time and energy from a device's data sheet: the roofline, uncalibrated.

Each operation takes the longer of its arithmetic at the peak rate and its traffic at the peak
bandwidth (Williams, Waterman, Patterson, CACM 2009), and at least the time it takes to launch.
Caches and the kernels' efficiency are left out, so large operations take longer than this says.
Energy is that time at the board power, so it is no bound at all: a label says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from profiler.replay.event_log import OperationRecord

if TYPE_CHECKING:
    pass

LAUNCH_SECONDS = 5e-6
"""Assumed: what one eager operation takes before its kernel runs. Published figures go from 5 to 25
microseconds of host work an operation
(https://jiahuanglin.xyz/all_lessons/gpu_kernel_serving/18_pytorch_to_kernel.html); the low end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a roofline needs.

    Attributes:
        flops_per_second: peak arithmetic at the workload's precision.
        bytes_per_second: peak memory bandwidth.
        watts: board power, None when not known.
        source: where the two rates come from.
        launch_seconds: the least an operation takes, however small.
        slowness: by kind of operation, how many times its arithmetic or traffic it takes; 1 for
            those that are not listed.
        refill_seconds: what it takes besides its operations that a frame runs again; nothing on a
            GPU, which has enough to do meanwhile.
    """

    flops_per_second: float
    bytes_per_second: float
    watts: float | None
    source: str
    launch_seconds: float = 0.0
    slowness: Mapping[str, float] = field(default_factory=dict)
    refill_seconds: float = 0.0

    def seconds(
        self, flops: float, moved_bytes: float, kind: str = "", *, launches: int = 1
    ) -> float:
        """Return the roofline time of one operation."""
        bound = max(flops / self.flops_per_second, moved_bytes / self.bytes_per_second)
        return max(bound * self.slowness.get(kind, 1.0), launches * self.launch_seconds)

    def total_seconds(self, operations: Iterable[OperationRecord]) -> float:
        """Return the sum over operations, one after the other."""
        return sum(
            self.seconds(op.flops, op.moved_bytes, op.kind, launches=op.launches)
            + op.begins_refill * self.refill_seconds
            for op in operations
        )
