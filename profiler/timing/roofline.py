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
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from profiler.arrays import Floats, Ints, Mask
from profiler.records import Origin, Spread
from profiler.replay.event_log import OperationRecord, Phase
from profiler.timing.corrections import corrected_loads
from profiler.timing.kernel_rates import KernelRates
from profiler.timing.power import PowerModel
from profiler.timing.step_load import (
    LAUNCHES,
    PRODUCTS,
    SECONDS,
    WAITING,
    StepCost,
    added_up,
    loads_of_bounds,
    loads_of_parts,
)

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
        slowness: measured over roofline seconds, by kind of operation.
        other_slowness: the same of kinds that ``slowness`` lacks.
        refill_slowness: the same of recomputed operations, which find their tensors in the cache;
            a kind that it lacks is as slow as elsewhere.
        update_slowness: the same of the optimizer's operations.
        update_launch_seconds: least seconds of an operation of the optimizer, without modules and
            autograd; None for ``launch_seconds``.
        recompute_python_seconds: Python seconds that recomputation adds to each operation in the
            forward of a unit that recomputes something, and to each recomputation. 0 on a GPU,
            where the host runs ahead of the kernels.
        kernels: fitted rates of the GPU's kernels; None for the roofline.
        power: power of the GPU; None for ``watts`` at any load.
        origin: where the seconds come from.
        spread: spread of measured over predicted seconds; None if it was not measured.
        power_spread: the same of power.
        power_origin: where the power comes from.
        power_limit_watts: power limit that is set; None for the board's own.
        factors: factors on products, other work, launches and the host's seconds, from real runs of
            this machine (``profiler.timing.corrections``); None for none.
    """

    flops_per_second: float
    bytes_per_second: float
    watts: float | None
    source: str
    launch_seconds: float = 0.0
    slowness: Mapping[str, float] = field(default_factory=dict)
    other_slowness: float = 1.0
    refill_slowness: Mapping[str, float] = field(default_factory=dict)
    update_slowness: float = 1.0
    update_launch_seconds: float | None = None
    recompute_python_seconds: float = 0.0
    kernels: KernelRates | None = None
    power: PowerModel | None = None
    origin: Origin = Origin.DATA_SHEET
    spread: Spread | None = None
    power_spread: Spread | None = None
    power_origin: Origin = Origin.DATA_SHEET
    power_limit_watts: float | None = None
    factors: tuple[float, float, float, float] | None = None

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
        slowness: npt.ArrayLike = 1.0,
    ) -> Floats:
        """Return [...] seconds of operations of a launch each: the longest of the three bounds."""
        bounds = self.bounds(flops, moved_bytes, slowness=slowness)
        longest: Floats = bounds.max(axis=0)
        return longest

    def python_seconds(self, begins_refill: npt.ArrayLike, intercepted: npt.ArrayLike) -> Floats:
        """Return [operations] Python seconds of recomputation, beside those of the operations.

        Args:
            begins_refill: [operations] whether a recomputation begins.
            intercepted: [operations] operations of a forward that were intercepted for it.
        """
        counted = np.add(begins_refill, intercepted, dtype=np.float64)
        found: Floats = counted * self.recompute_python_seconds
        return found

    def slowness_of(self, kinds: Sequence[str], index: Ints, *, is_refill: Mask) -> Floats:
        """Return [operations] slowness.

        Args:
            kinds: [kinds] names of kinds.
            index: [operations] position of each operation's kind.
            is_refill: [operations] whether the operation is recomputed.
        """
        elsewhere = np.array([self.slowness.get(kind, self.other_slowness) for kind in kinds])
        found: Floats = elsewhere[index]
        if self.refill_slowness and is_refill.any():
            pairs = zip(kinds, elsewhere.tolist(), strict=True)
            again = np.array([self.refill_slowness.get(kind, slow) for kind, slow in pairs])
            found = np.where(is_refill, again[index], found)
        return found

    def for_update(self) -> Rates:
        """Return the rates of the optimizer's operations."""
        launch = self.update_launch_seconds
        return replace(
            self,
            launch_seconds=self.launch_seconds if launch is None else launch,
            slowness={},
            refill_slowness={},
            other_slowness=self.update_slowness,
        )

    def total_seconds(self, operations: Iterable[OperationRecord]) -> float:
        """Return the seconds of operations that run one after the other."""
        return float(self.load(operations)[SECONDS])

    def load(self, operations: Iterable[OperationRecord]) -> Floats:
        """Return [LOAD_SUMS] the load of operations (``profiler.timing.step_load``)."""
        records = list(operations)
        launches = np.array([op.launches for op in records], dtype=np.int64)
        moved_bytes = np.array([op.moved_bytes for op in records], dtype=np.float64)
        if self.kernels is not None:
            names, index = np.unique([op.kernel for op in records], return_inverse=True)
            parts = self.kernels.parts(
                names,
                index.reshape(-1),
                dims=np.array([op.dims for op in records], dtype=np.float64).reshape(-1, 6),
                moved_bytes=moved_bytes,
                launches=launches,
            )
            return added_up(self.corrected(loads_of_parts(parts, launches)))
        bounds = self.bounds(
            [op.flops for op in records],
            moved_bytes,
            launches=launches,
            slowness=self.slowness_of(
                [op.kind for op in records],
                np.arange(len(records)),
                is_refill=np.array([op.phase is Phase.RECOMPUTE for op in records], dtype=bool),
            ),
        )
        added = self.python_seconds(
            [op.begins_refill for op in records], [op.intercepted for op in records]
        )
        loads = loads_of_bounds(bounds, launches, added_seconds=added)
        return added_up(self.corrected(loads))

    def corrected(self, loads: Floats) -> Floats:
        """Return [..., LOAD_SUMS] loads, corrected by the real runs of this machine."""
        return loads if self.factors is None else corrected_loads(loads, np.array(self.factors))

    def step_cost(self, load: Floats) -> StepCost:
        """Return the time and the power of a step.

        The GPU works in the part of the step that is neither spent on launches nor on waiting for
        the host. The power model was fitted to that share.

        Args:
            load: [LOAD_SUMS] the load of the whole step.
        """
        kernels = float(load[SECONDS])
        host = self.host_seconds(float(load[LAUNCHES]))
        seconds = max(kernels, host)
        if self.power is None or self.kernels is None or kernels <= 0:
            return StepCost(seconds=seconds, host_seconds=host, watts=self.watts)
        share = float(load[PRODUCTS]) / kernels
        busy = (kernels - float(load[WAITING])) / seconds
        limit = self.power_limit_watts
        if limit is None:
            watts = self.power.watts(product_share=share, busy=busy)
        else:
            seconds = max(
                kernels * self.power.slowdown(limit, product_share=share, busy=busy), host
            )
            watts = self.power.limited(limit).watts(product_share=share, busy=busy)
        return StepCost(seconds=seconds, host_seconds=host, watts=watts)

    def host_seconds(self, launches: float) -> float:
        """Return the host's seconds for a step's launches: the step takes at least these.

        The roofline has the launch as a bound of each operation, so there it is 0.
        """
        factor = 1.0 if self.factors is None else self.factors[3]
        return 0.0 if self.kernels is None else launches * self.launch_seconds * factor
