"""Bytes and seconds of every unit and option, at one micro-batch and rank.

A family's profile holds polynomials in the micro-batch B and the rank r
(``profiler.prediction.parametric``). ``unit_costs`` evaluates them at one point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

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


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionCosts:
    """Costs with all units under one option; they do not depend on the optimizer.

    Attributes:
        stored: [units] bytes that the unit's forward stores for backward.
        cached: [units] bytes that the unit's forward leaves live until the last forward has ended.
        forward: [units] highest live bytes during the unit's forward, above the level at its entry.
        backward: [units] highest live bytes during the unit's backward.
        head_bytes: live bytes of classifier and loss above the last unit's exit.
        recompute: [units, LOAD_SUMS] load of recomputation.
    """

    stored: Floats
    cached: Floats
    forward: Floats
    backward: Floats
    head_bytes: float
    recompute: Floats

    @classmethod
    def of(
        cls, profile: OptionProfile, workload: Workload, *, device: DeviceSpec, rates: Rates | None
    ) -> Self:
        """Evaluate the profile of an option for a workload."""
        point = terms(workload.micro_batch, workload.rank)
        sums = profile.partial_sums(workload.micro_batch, device)
        backward = profile.accumulating if workload.accumulation > 1 else profile.backward
        work = profile.recompute_work
        loads = work.loads(point, rates or RANKING_RATES)
        return cls(
            stored=profile.stored @ point,
            cached=profile.cached @ point,
            forward=profile.forward.at(point, sums),
            backward=backward.at(point, sums),
            head_bytes=float(profile.head.at(point, sums)[0]),
            recompute=loads_by_unit(loads, work.unit, len(profile.stored)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptCosts:
    """Costs from the profile of ``keep``, common to all options and independent of the optimizer.

    Attributes:
        base_bytes: live bytes when the first forward begins, without optimizer state and gradients.
        gradients: [units + 1] gradient bytes of each unit, the head's last.
        forward_load: [units, LOAD_SUMS] load of the complete forward.
        step: [LOAD_SUMS] load of forward and backward of a micro-batch; None if the speed of the
            device is unknown.
    """

    base_bytes: float
    gradients: Floats
    forward_load: Floats
    step: Floats | None

    @classmethod
    def of(cls, kept: OptionProfile, workload: Workload, *, rates: Rates | None) -> Self:
        """Evaluate the profile of ``keep`` for a workload."""
        point = terms(workload.micro_batch, workload.rank)
        each = kept.work.loads(point, rates or RANKING_RATES)
        is_step = np.isin(kept.work.phase, (Phase.INPUT, Phase.FORWARD, Phase.BACKWARD))
        is_forward = (kept.work.phase == Phase.FORWARD) & (kept.work.unit >= 0)
        return cls(
            base_bytes=float(kept.base @ point),
            gradients=kept.gradients @ point,
            forward_load=loads_by_unit(
                each[is_forward], kept.work.unit[is_forward], len(kept.stored)
            ),
            step=None if rates is None else added_up(each[is_step]),
        )


def unit_costs(
    workload: Workload,
    options: Mapping[UnitOption, OptionCosts],
    kept: KeptCosts,
    update: UpdateProfile,
    *,
    rates: Rates | None,
) -> UnitCosts:
    """Combine the costs of the options, of ``keep`` and of the optimizer's update.

    Args:
        workload: gives micro-batch, rank, accumulation and image size.
        options: costs by option.
        kept: costs of the option ``keep``.
        update: profile of the optimizer step.
        rates: rates of the device; None if its speed is unknown.
    """
    point = terms(workload.micro_batch, workload.rank)
    accumulating = workload.accumulation > 1
    gradients = kept.gradients
    base = kept.base_bytes + float(update.state @ point)
    # float32 images and int64 labels, freed before the optimizer step
    inputs = workload.micro_batch * (3 * workload.image_size**2 * 4 + 8)
    floor = base - inputs + float(gradients.sum()) + float(update.temporary @ point)
    if accumulating:
        base += float(gradients.sum())
    return UnitCosts(
        base_bytes=base,
        floor_bytes=floor,
        stored={option: costs.stored for option, costs in options.items()},
        cached={option: costs.cached for option, costs in options.items()},
        forward={option: costs.forward for option, costs in options.items()},
        backward={option: costs.backward for option, costs in options.items()},
        head_bytes={option: costs.head_bytes for option, costs in options.items()},
        gradients=np.zeros_like(gradients) if accumulating else gradients,
        recompute={option: costs.recompute for option, costs in options.items()},
        forward_load=kept.forward_load,
        step=kept.step,
        update=added_up(update.work.loads(point, (rates or RANKING_RATES).for_update())),
    )
