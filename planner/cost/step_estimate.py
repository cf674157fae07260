"""Estimate of a training step: bytes, seconds and joules of a candidate, for the search."""

from __future__ import annotations

from dataclasses import dataclass, replace

from planner.cost.budget import AllocatorOverhead, AllocatorReading
from planner.cost.peak_tables import PeakTables, TableIndices
from planner.cost.unit_costs import UnitCosts
from profiler.arrays import Floats
from profiler.placement import Placement
from profiler.timing.roofline import Rates
from profiler.unit_options import UnitOption
from profiler.units import DeviceBytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEstimate:
    """Composed memory, time and energy of an optimizer step.

    Attributes:
        peak_bytes: allocated bytes at the peak; live bytes on a CPU.
        reserved_bytes: bytes reserved by the caching allocator; None on a CPU.
        device_bytes: reserved bytes plus the CUDA context, which a budget limits; the peak on a
            CPU.
        step_seconds: time of the step; None if the speed of the device is unknown.
        energy_joules: energy of the step; None if speed or power is unknown.
        load: [LOAD_SUMS] load of the step; None if the speed of the device is unknown.
    """

    peak_bytes: int
    reserved_bytes: int | None
    device_bytes: DeviceBytes
    step_seconds: float | None
    energy_joules: float | None
    load: Floats | None = None

    def with_reading(self, reading: AllocatorReading, *, context_bytes: int) -> StepEstimate:
        """Return the estimate with bytes that were read from the model of the allocator.

        Args:
            reading: reading of the candidate's step.
            context_bytes: CUDA context of the device.
        """
        return replace(
            self,
            peak_bytes=reading.allocated_bytes,
            reserved_bytes=reading.reserved_bytes,
            device_bytes=DeviceBytes(reading.reserved_bytes + context_bytes),
        )


@dataclass(slots=True, kw_only=True)
class PreparedWorkload:
    """Data that all estimates of a workload share.

    Attributes:
        costs: costs with every unit kept; bytes and seconds outside the units are read from here.
        tables: tables by the options in their rows, filled as placements use them.
        indices: table positions by placement, shared by all workloads of a family.
        rates: rates of the device; None if its speed is unknown.
        workspace_bytes: cuBLAS workspaces of the device.
        context_bytes: CUDA context of the device, 0 on a CPU.
    """

    costs: UnitCosts
    tables: dict[tuple[UnitOption, ...], PeakTables]
    indices: dict[Placement, TableIndices]
    rates: Rates | None
    workspace_bytes: int
    context_bytes: int


def estimate_step(
    prepared: PreparedWorkload,
    *,
    overhead: AllocatorOverhead | None,
    live_bytes: float,
    recompute: Floats,
    accumulation: int,
) -> StepEstimate:
    """Return the estimate of a placement.

    Args:
        prepared: costs of the workload.
        overhead: overhead of the caching allocator under the placement; None on a CPU.
        live_bytes: live bytes at the peak of the placement, without workspaces.
        recompute: [LOAD_SUMS] load of recomputation in one micro-batch.
        accumulation: micro-batches in an optimizer step.
    """
    load = cost = None
    if prepared.rates is not None and prepared.costs.step is not None:
        load = (prepared.costs.step + recompute) * accumulation + prepared.costs.update
        cost = prepared.rates.step_cost(load)
    peak, reserved = round(live_bytes) + prepared.workspace_bytes, None
    if overhead is not None:
        reserved = overhead.reserved_bytes(peak)
        peak = round(peak * overhead.allocated)
    in_use = peak if reserved is None else reserved
    return StepEstimate(
        peak_bytes=peak,
        reserved_bytes=reserved,
        device_bytes=DeviceBytes(in_use + prepared.context_bytes),
        step_seconds=None if cost is None else cost.seconds,
        energy_joules=None if cost is None else cost.joules,
        load=load,
    )
