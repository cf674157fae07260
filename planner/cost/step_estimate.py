"""Estimate of one training step in the search: bytes, seconds, and the allocator's overhead."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cost.peak_tables import Choice, Floats, Numbers, Tables
from profiler.device_rules.caching_allocator import (
    LARGE_SEGMENT_BYTES,
)
from profiler.placement import Placement
from profiler.prediction.parametric import OptionProfile, UpdateProfile
from profiler.replay.event_log import Phase
from profiler.timing.roofline import Rates

HALF_SEGMENT_BYTES = LARGE_SEGMENT_BYTES // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEstimate:
    """What a search needs of a candidate.

    Attributes:
        peak_bytes: live bytes at the peak.
        reserved_bytes: what the allocator holds; None on a CPU.
        device_bytes: what a budget is held against.
        step_seconds: one optimizer step; None without rates.
        energy_joules: likewise; None without a power.
    """

    peak_bytes: int
    reserved_bytes: int | None
    device_bytes: int
    step_seconds: float | None
    energy_joules: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorOverhead:
    """What the caching allocator makes of live bytes.

    Attributes:
        allocated: in the blocks that tensors were given, which may be larger than they: a multiple.
        reserved: in its segments: a multiple, beside half a segment that is not filled.
    """

    allocated: float
    reserved: float

    def reserved_bytes(self, live_bytes: float) -> int:
        """Return what is reserved for a peak."""
        return round(live_bytes * self.reserved) + HALF_SEGMENT_BYTES

    def live_bytes(self, reserved_bytes: int) -> int:
        """Return the peak that so much is reserved for."""
        return int((reserved_bytes - HALF_SEGMENT_BYTES) / self.reserved)


@dataclass(slots=True, kw_only=True)
class PreparedWorkload:
    """What ``quick`` has worked out for a workload.

    Attributes:
        numbers: of the options seen so far.
        tables: likewise, by options.
        choices: placements as indices, shared by the family.
        watts: power of the rates, None when not known.
        workspace_bytes: of the device.
        slack: what the caching allocator makes of a peak; None on a CPU.
        context_bytes: of the device.
    """

    numbers: Numbers
    tables: dict[tuple[str, ...], Tables]
    choices: dict[Placement, Choice]
    watts: float | None
    workspace_bytes: int
    slack: AllocatorOverhead | None
    context_bytes: int


NOMINAL = Rates(
    flops_per_second=1e12, bytes_per_second=1e12, watts=None, source="to rank options by"
)
"""Stands in where nothing is known of a device's speed: only the order of options counts."""


def round_up_to_half_segment(value: float) -> int:
    return int(np.ceil(value))


def estimate_step(
    ready: PreparedWorkload, live: float, again: float, *, accumulation: int
) -> StepEstimate:
    seconds = joules = None
    numbers = ready.numbers
    if numbers.step_seconds is not None:
        seconds = (numbers.step_seconds + again) * accumulation + numbers.update_seconds
        if ready.watts is not None:
            joules = seconds * ready.watts
    peak, reserved = round(live) + ready.workspace_bytes, None
    if ready.slack is not None:
        reserved = ready.slack.reserved_bytes(peak)
        peak = round(peak * ready.slack.allocated)
    return StepEstimate(
        peak_bytes=peak,
        reserved_bytes=reserved,
        device_bytes=(peak if reserved is None else reserved) + ready.context_bytes,
        step_seconds=seconds,
        energy_joules=joules,
    )


def roofline_seconds(profile: OptionProfile, point: Floats, roofline: Rates | None) -> float | None:
    if roofline is None:
        return None
    work = profile.work.of(Phase.INPUT, Phase.FORWARD, Phase.BACKWARD)
    each = work.seconds(point, roofline)
    return float(each.sum())


def recompute_seconds_of(profile: OptionProfile, point: Floats, roofline: Rates | None) -> Floats:
    """Return [units] seconds of recomputation; bytes stand in for seconds without rates."""
    return _by_unit(profile, point, roofline, (Phase.RECOMPUTE,))


def forward_seconds_of(profile: OptionProfile, point: Floats, roofline: Rates | None) -> Floats:
    return _by_unit(profile, point, roofline, (Phase.FORWARD,))


def _by_unit(
    profile: OptionProfile, point: Floats, roofline: Rates | None, phases: tuple[Phase, ...]
) -> Floats:
    work = profile.work.of(*phases)
    each = work.seconds(point, roofline or NOMINAL)
    inside = work.unit >= 0
    totals = np.bincount(work.unit[inside], weights=each[inside], minlength=len(profile.stored))
    return totals.astype(np.float64)


def update_seconds_of(update: UpdateProfile, point: Floats, roofline: Rates | None) -> float:
    if roofline is None:
        return 0.0
    each = update.work.seconds(point, roofline)
    return float(each.sum())
