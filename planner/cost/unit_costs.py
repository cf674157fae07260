"""Bytes and seconds of every unit and option, at one micro-batch and rank.

A family's profile holds polynomials in the micro-batch B and the rank r
(``profiler.prediction.parametric``). ``unit_costs`` evaluates them at one point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from profiler.arrays import Floats
from profiler.devices.table import DeviceSpec
from profiler.prediction.profile_records import OptionProfile, UpdateProfile, terms
from profiler.replay.event_log import Phase
from profiler.timing.roofline import Rates
from profiler.timing.step_load import SECONDS, added_up, loads_by_unit
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
        recompute: [units, LOAD_SUMS] load of recomputation.
        forward_load: [units, LOAD_SUMS] load of the complete forward.
        step: [LOAD_SUMS] load of forward and backward of a micro-batch without recomputation; None
            if the speed of the device is unknown.
        update: [LOAD_SUMS] load of the optimizer step.
    """

    base_bytes: float
    floor_bytes: float
    stored: Mapping[UnitOption, Floats]
    cached: Mapping[UnitOption, Floats]
    forward: Mapping[UnitOption, Floats]
    backward: Mapping[UnitOption, Floats]
    head_bytes: Mapping[UnitOption, float]
    gradients: Floats
    recompute: Mapping[UnitOption, Floats]
    forward_load: Floats
    step: Floats | None
    update: Floats

    def recompute_seconds(self, option: UnitOption) -> Floats:
        """Return [units] seconds of recomputation under an option."""
        each: Floats = self.recompute[option][:, SECONDS]
        return each

    @property
    def step_seconds(self) -> float | None:
        """Seconds of forward and backward of a micro-batch without recomputation."""
        return None if self.step is None else float(self.step[SECONDS])

    @property
    def update_seconds(self) -> float:
        """Seconds of the optimizer step."""
        return float(self.update[SECONDS])

    @property
    def forward_seconds(self) -> Floats:
        """[units] seconds of the complete forward."""
        each: Floats = self.forward_load[:, SECONDS]
        return each


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
    each = kept.work.loads(point, seconds_rates)
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
        recompute={
            option: _recompute_loads(profile, point, seconds_rates)
            for option, profile in options.items()
        },
        forward_load=loads_by_unit(each[is_forward], kept.work.unit[is_forward], len(kept.stored)),
        step=None if rates is None else added_up(each[is_step]),
        update=added_up(update.work.loads(point, seconds_rates.for_update())),
    )


def _recompute_loads(profile: OptionProfile, point: Floats, rates: Rates) -> Floats:
    """Return [units, LOAD_SUMS] loads of recomputation."""
    work = profile.recompute_work
    return loads_by_unit(work.loads(point, rates), work.unit, len(profile.stored))
