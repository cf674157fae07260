"""Rates of a device, and the roofline: seconds of operations from FLOPs, bytes and launches.

A GPU of the device table has kernel rates (``profiler.timing.kernel_rates``). Without them an
operation's seconds are a roofline.

An operation takes the longest of three times (Williams, Waterman, Patterson, CACM 52(4), 2009):

    arithmetic  FLOPs / peak FLOP rate
    traffic     bytes read and written / peak memory bandwidth
    launch      kernel launches x seconds of a launch

``Rates.bounds`` is the only place that computes them. Replayed logs, parametric profiles and
calibration all call it.

Limitations: the roofline leaves out caches and the efficiency of kernels. With the rates of a data
sheet, large operations take longer than it predicts. On a CPU the ratio is measured by kind of
operation (``slowness``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from profiler.arrays import Floats
from profiler.records import Origin, Spread
from profiler.replay.event_log import OperationRecord
from profiler.timing.kernel_rates import KernelRates, share_of_products
from profiler.timing.power import PowerModel

LAUNCH_SECONDS = 5e-6
"""Host seconds of an eager operation before its kernel runs. This is an assumption: the low end of
the 5 to 25 microseconds that are published
(https://jiahuanglin.xyz/all_lessons/gpu_kernel_serving/18_pytorch_to_kernel.html)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Rates of a device for one workload.

    Attributes:
        flops_per_second: peak FLOP rate at the workload's precision.
        bytes_per_second: peak memory bandwidth.
        watts: board power; None if unknown.
        source: origin of the rates (data sheet, timed here, calibrated).
        launch_seconds: least seconds of an operation, however small.
        slowness: measured over roofline seconds, by kind of operation; 1 for kinds not listed.
        refill_seconds: Python seconds that a recomputation adds to its operations. 0 on a GPU,
            where the host runs ahead of the kernels.
        kernels: fitted rates of the GPU's kernels; None for the roofline.
        power: power of the GPU; None for ``watts`` at any load.
        origin: where the seconds come from.
        spread: spread of measured over predicted seconds; None if it was not measured.
        power_spread: the same of power.
        power_origin: where the power comes from.
    """

    flops_per_second: float
    bytes_per_second: float
    watts: float | None
    source: str
    launch_seconds: float = 0.0
    slowness: Mapping[str, float] = field(default_factory=dict)
    refill_seconds: float = 0.0
    kernels: KernelRates | None = None
    power: PowerModel | None = None
    origin: Origin = Origin.DATA_SHEET
    spread: Spread | None = None
    power_spread: Spread | None = None
    power_origin: Origin = Origin.DATA_SHEET

    def bounds(
        self,
        flops: npt.ArrayLike,
        moved_bytes: npt.ArrayLike,
        *,
        launches: npt.ArrayLike = 1,
        slowness: npt.ArrayLike = 1.0,
    ) -> Floats:
        """Return [3, ...] seconds of arithmetic, traffic and launches.

        Args:
            flops: [...] FLOPs of each operation.
            moved_bytes: [...] bytes that it reads and writes.
            launches: [...] kernels that it launches.
            slowness: [...] factor on arithmetic and traffic (``slowness_of``).
        """
        arithmetic = np.divide(flops, self.flops_per_second) * slowness
        traffic = np.divide(moved_bytes, self.bytes_per_second) * slowness
        launch = np.multiply(launches, self.launch_seconds)
        return np.stack(np.broadcast_arrays(arithmetic, traffic, launch))

    def seconds(
        self,
        flops: npt.ArrayLike,
        moved_bytes: npt.ArrayLike,
        *,
        launches: npt.ArrayLike = 1,
        slowness: npt.ArrayLike = 1.0,
    ) -> Floats:
        """Return [...] seconds of each operation: the longest of its three bounds."""
        bounds = self.bounds(flops, moved_bytes, launches=launches, slowness=slowness)
        longest: Floats = bounds.max(axis=0)
        return longest

    def slowness_of(self, kinds: Sequence[str]) -> Floats:
        """Return [kinds] slowness of each kind."""
        return np.array([self.slowness.get(kind, 1.0) for kind in kinds])

    def total_seconds(self, operations: Iterable[OperationRecord]) -> float:
        """Return the seconds of operations that run one after the other."""
        records = list(operations)
        if self.kernels is not None:
            return float(self._kernel_seconds(records).sum())
        seconds = self.seconds(
            [op.flops for op in records],
            [op.moved_bytes for op in records],
            launches=[op.launches for op in records],
            slowness=self.slowness_of([op.kind for op in records]),
        )
        refills = np.array([op.begins_refill for op in records], dtype=np.float64)
        each: list[float] = (seconds + refills * self.refill_seconds).tolist()
        return sum(each, 0.0)

    def watts_of(self, operations: Iterable[OperationRecord]) -> float | None:
        """Return the power while operations run; None if it is unknown."""
        if self.power is None or self.kernels is None:
            return self.watts
        parts = self._kernel_parts(list(operations))
        return self.power.watts(product_share=share_of_products(parts))

    def _kernel_seconds(self, records: Sequence[OperationRecord]) -> Floats:
        seconds: Floats = self._kernel_parts(records).sum(axis=1)
        return seconds

    def _kernel_parts(self, records: Sequence[OperationRecord]) -> Floats:
        assert self.kernels is not None
        names, index = np.unique([op.kernel for op in records], return_inverse=True)
        return self.kernels.parts(
            names,
            index.reshape(-1),
            dims=np.array([op.dims for op in records], dtype=np.float64).reshape(-1, 6),
            moved_bytes=np.array([op.moved_bytes for op in records], dtype=np.float64),
            launches=np.array([op.launches for op in records], dtype=np.int64),
        )

    def host_seconds(self, launches: float) -> float:
        """Return the host's seconds for a step's launches: the step takes at least these.

        The roofline has the launch as a bound of each operation, so there it is 0.
        """
        return 0.0 if self.kernels is None else launches * self.launch_seconds
