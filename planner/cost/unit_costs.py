"""Bytes and seconds of every unit and option, at one micro-batch and rank.

A family's profile holds polynomials in the micro-batch B and the rank r
(``profiler.prediction.parametric``). ``unit_costs`` evaluates them at one point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from profiler.arrays import Floats, Ints
from profiler.devices.table import DeviceSpec
from profiler.prediction.profile_records import OptionProfile, UpdateProfile, Work, terms
from profiler.replay.event_log import Phase
from profiler.timing.kernel_rates import share_of_products
from profiler.timing.roofline import Rates
from profiler.unit_options import UnitOption
from profiler.workload import Workload

RANKING_RATES = Rates(
    flops_per_second=1e12, bytes_per_second=1e12, watts=None, source="to rank options by"
)
"""Rates for a device of unknown speed. Only ratios of recompute times are used then, to choose
between options; no seconds are reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitCosts:
    """Costs of a workload per unit and option; arrays are [units], by option.

    Attributes:
        base_bytes: live bytes when the first forward begins, optimizer state included.
        floor_bytes: highest live bytes of the optimizer step.
        stored: bytes that the unit's forward stores for backward.
        cached: bytes that the unit's forward leaves live until the last forward has ended.
        forward: highest live bytes during the unit's forward, above the level at its entry.
        backward: highest live bytes during the unit's backward, at the workload's accumulation.
        head_bytes: live bytes of classifier and loss above the last unit's exit, by option of the
            last unit.
        gradients: [units + 1] gradient bytes that each unit's backward leaves, the head's last;
            zeros with accumulation, where all gradients are live from the start.
        recompute_seconds: seconds of recomputation.
        forward_seconds: [units] seconds of the complete forward.
        step_seconds: forward and backward of a micro-batch without recomputation; None if the
            speed of the device is unknown.
        update_seconds: seconds of the optimizer step.
        step_launches: kernels launched by forward and backward.
        update_launches: kernels launched by the optimizer step.
        watts: power while forward and backward run; None if it is unknown.
    """

    base_bytes: float
    floor_bytes: float
    stored: Mapping[UnitOption, Floats]
    cached: Mapping[UnitOption, Floats]
    forward: Mapping[UnitOption, Floats]
    backward: Mapping[UnitOption, Floats]
    head_bytes: Mapping[UnitOption, float]
    gradients: Floats
    recompute_seconds: Mapping[UnitOption, Floats]
    forward_seconds: Floats
    step_seconds: float | None
    update_seconds: float
    step_launches: int
    update_launches: int
    watts: float | None


def unit_costs(
    workload: Workload,
    options: Mapping[UnitOption, OptionProfile],
    kept: OptionProfile,
    update: UpdateProfile,
    *,
    device: DeviceSpec,
    rates: Rates | None,
) -> UnitCosts:
    """Evaluate a family's profile for a workload.

    Args:
        workload: gives micro-batch, rank, accumulation and image size.
        options: profiles by option.
        kept: profile of the option ``keep``.
        update: profile of the optimizer step.
        device: device, whose multiprocessors decide the scratch memory of CUDA reductions.
        rates: rates of the device; None if its speed is unknown.
    """
    point = terms(workload.micro_batch, workload.rank)
    accumulating = workload.accumulation > 1
    sums = {o: p.partial_sums(workload.micro_batch, device) for o, p in options.items()}
    gradients = kept.gradients @ point
    base = float(kept.base @ point) + float(update.state @ point)
    # float32 images and int64 labels, freed before the optimizer step
    inputs = workload.micro_batch * (3 * workload.image_size**2 * 4 + 8)
    floor = base - inputs + float(gradients.sum()) + float(update.temporary @ point)
    if accumulating:
        base += float(gradients.sum())
    seconds_rates = rates or RANKING_RATES
    each, watts = _kept_seconds(kept.work, point, seconds_rates)
    is_step = np.isin(kept.work.phase, (Phase.INPUT, Phase.FORWARD, Phase.BACKWARD))
    is_forward = (kept.work.phase == Phase.FORWARD) & (kept.work.unit >= 0)
    return UnitCosts(
        base_bytes=base,
        floor_bytes=floor,
        stored={o: p.stored @ point for o, p in options.items()},
        cached={o: p.cached @ point for o, p in options.items()},
        forward={o: p.forward.at(point, sums[o]) for o, p in options.items()},
        backward={
            o: (p.accumulating if accumulating else p.backward).at(point, sums[o])
            for o, p in options.items()
        },
        head_bytes={o: float(p.head.at(point, sums[o])[0]) for o, p in options.items()},
        gradients=np.zeros_like(gradients) if accumulating else gradients,
        recompute_seconds={
            option: _recompute_seconds(profile, point, seconds_rates)
            for option, profile in options.items()
        },
        forward_seconds=_by_unit(kept.work.unit[is_forward], each[is_forward], len(kept.stored)),
        step_seconds=None if rates is None else float(each[is_step].sum()),
        update_seconds=0.0 if rates is None else float(update.work.seconds(point, rates).sum()),
        step_launches=int(kept.work.launches[is_step].sum()),
        update_launches=int(update.work.launches.sum()),
        watts=None if rates is None else watts,
    )


def _kept_seconds(work: Work, point: Floats, rates: Rates) -> tuple[Floats, float | None]:
    """Return [operations] seconds of a step without recomputation, and the power meanwhile."""
    if rates.kernels is None or rates.power is None:
        return work.seconds(point, rates), rates.watts
    parts = work.kernel_parts(point, rates.kernels)
    return parts.sum(axis=1), rates.power.watts(product_share=share_of_products(parts))


def _recompute_seconds(profile: OptionProfile, point: Floats, rates: Rates) -> Floats:
    """Return [units] seconds of recomputation."""
    work = profile.recompute_work
    each = work.seconds(point, rates)
    inside = work.unit >= 0
    return _by_unit(work.unit[inside], each[inside], len(profile.stored))


def _by_unit(unit: Ints, seconds: Floats, count: int) -> Floats:
    """Return [units] sums of the seconds of operations."""
    return np.bincount(unit, weights=seconds, minlength=count).astype(np.float64)
