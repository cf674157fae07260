"""Seconds and joules of a report, with their origins and intervals."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TypedDict

from profiler.arrays import Floats
from profiler.records import Origin, PowerSaving, ValueInterval
from profiler.timing.kernel_rates import kernel_file
from profiler.timing.power import LEAST_LIMIT
from profiler.timing.roofline import Rates
from profiler.timing.step_load import StepCost

MOST_SLOWDOWN = 1.05
"""Longest time, relative to the time without a limit, of a power limit that is offered."""

LEAST_SAVING = 0.05
"""Smallest share of energy that a power limit saves if it is offered."""

_LIMITS_TRIED = 8


class PredictedCost(TypedDict):
    """Fields of a ``Report``."""

    step_seconds: float | None
    step_seconds_origin: Origin | None
    step_seconds_interval: ValueInterval | None
    host_decides: bool | None
    energy_joules: float | None
    energy_joules_origin: Origin | None
    energy_joules_interval: ValueInterval | None
    power_limit_watts: float | None
    power_saving: PowerSaving | None


def predicted_cost(load: Floats | None, rates: Rates | None) -> PredictedCost:
    """Return the fields of a predicted report.

    If the host decides the time of the step, the time is an assumption, whose interval has no
    measured coverage.

    Args:
        load: [LOAD_SUMS] load of the whole step; None if its time is unknown.
        rates: rates of the device; None if they are unknown.
    """
    if load is None or rates is None:
        return PredictedCost(
            step_seconds=None,
            step_seconds_origin=None,
            step_seconds_interval=None,
            host_decides=None,
            energy_joules=None,
            energy_joules_origin=None,
            energy_joules_interval=None,
            power_limit_watts=None,
            power_saving=None,
        )
    fields = cost_fields(rates.step_cost(load), rates)
    fields["power_saving"] = power_saving(load, rates)
    return fields


def time_note(cost: PredictedCost, source: str) -> str:
    """Return the note on where a predicted time comes from.

    Args:
        cost: fields of the report.
        source: source of the rates, for a step whose time the kernels decide.
    """
    if cost["host_decides"]:
        return (
            "time: the host's launches decide it, not the GPU; their speed and the range are "
            "assumptions"
        )
    return f"time: {source}"


def cost_fields(cost: StepCost, rates: Rates) -> PredictedCost:
    """Return the fields of a known time and power, without a power limit that saves energy.

    Args:
        cost: predicted time and power.
        rates: rates that they were computed from.
    """
    seconds_interval, joules_interval = _intervals(cost, rates)
    origin = Origin.DATA_SHEET if cost.host_decides else rates.origin
    return PredictedCost(
        step_seconds=cost.seconds,
        step_seconds_origin=origin,
        step_seconds_interval=seconds_interval,
        host_decides=None if rates.kernels is None else cost.host_decides,
        energy_joules=cost.joules,
        energy_joules_origin=None if cost.joules is None else _weaker(origin, rates.power_origin),
        energy_joules_interval=joules_interval,
        power_limit_watts=rates.power_limit_watts,
        power_saving=None,
    )


def power_saving(load: Floats, rates: Rates) -> PowerSaving | None:
    """Return the power limit of least energy among those that cost little time.

    None if no limit saves ``LEAST_SAVING`` of the energy, and on a device whose power under a
    limit is not known.

    Args:
        load: [LOAD_SUMS] load of the whole step.
        rates: rates of the device.
    """
    free = rates.step_cost(load)
    if rates.power is None or free.joules is None or rates.power_limit_watts is not None:
        return None
    board = rates.power.limit_watts
    best = None
    for number in range(_LIMITS_TRIED):
        share = LEAST_LIMIT + (1.0 - LEAST_LIMIT) * number / _LIMITS_TRIED
        watts = float(math.ceil(board * share))  # rounded down, the lowest one would be refused
        limited = replace(rates, power_limit_watts=watts)
        cost = limited.step_cost(load)
        if cost.joules is None or cost.seconds > MOST_SLOWDOWN * free.seconds:
            continue
        if cost.joules <= (1.0 - LEAST_SAVING) * free.joules and (
            best is None or cost.joules < best.energy_joules
        ):
            seconds_interval, joules_interval = _intervals(cost, limited)
            best = PowerSaving(
                watts=watts,
                step_seconds=cost.seconds,
                step_seconds_interval=seconds_interval,
                energy_joules=cost.joules,
                energy_joules_interval=joules_interval,
            )
    return best


def _intervals(cost: StepCost, rates: Rates) -> tuple[ValueInterval | None, ValueInterval | None]:
    """Return the intervals of seconds and joules."""
    time, power = rates.spread, rates.power_spread
    if cost.host_decides:
        time = kernel_file().spread(Origin.DATA_SHEET)
    if rates.power_limit_watts is not None:
        limit = kernel_file().power_limit_spread()
        time = None if time is None else time.times(limit)
    energy = None if time is None or power is None else time.times(power)
    joules = cost.joules
    return (
        None if time is None else time.around(cost.seconds),
        None if energy is None or joules is None else energy.around(joules),
    )


def _weaker(*origins: Origin) -> Origin:
    """Return the weakest of some origins."""
    return max(origins, key=list(Origin).index)
