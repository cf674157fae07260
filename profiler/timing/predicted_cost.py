"""Seconds and joules of a report, with their origins and intervals."""

from __future__ import annotations

from dataclasses import replace
from typing import TypedDict

from profiler.records import Origin, Spread, ValueInterval
from profiler.timing.kernel_rates import kernel_file
from profiler.timing.roofline import Rates


class PredictedCost(TypedDict):
    """Fields of a ``Report``."""

    step_seconds: float | None
    step_seconds_origin: Origin | None
    step_seconds_interval: ValueInterval | None
    energy_joules: float | None
    energy_joules_origin: Origin | None
    energy_joules_interval: ValueInterval | None


def predicted_cost(
    seconds: float | None, watts: float | None, rates: Rates | None, *, host_seconds: float = 0.0
) -> PredictedCost:
    """Return the fields of a predicted report.

    Args:
        seconds: predicted seconds of a step.
        watts: predicted power.
        rates: rates that the seconds are computed from.
        host_seconds: seconds of the host for the step's launches. If they decide the time, it is
            an assumption, whose interval has no measured coverage.
    """
    if rates is not None and seconds is not None and seconds <= host_seconds:
        spread = kernel_file().spread(Origin.DATA_SHEET)
        rates = replace(rates, origin=Origin.DATA_SHEET, spread=spread)
    joules = None if seconds is None or watts is None else seconds * watts
    origin = None if seconds is None or rates is None else rates.origin
    time_spread = None if rates is None else rates.spread
    energy_spread = None
    if rates is not None and time_spread is not None and rates.power_spread is not None:
        energy_spread = time_spread.times(rates.power_spread)
    return PredictedCost(
        step_seconds=seconds,
        step_seconds_origin=origin,
        step_seconds_interval=_around(seconds, time_spread),
        energy_joules=joules,
        energy_joules_origin=None if joules is None or rates is None else _weaker(rates),
        energy_joules_interval=_around(joules, energy_spread),
    )


def _around(value: float | None, spread: Spread | None) -> ValueInterval | None:
    return None if value is None or spread is None else spread.around(value)


def _weaker(rates: Rates) -> Origin:
    """Return the weaker of the origins of time and power."""
    order = list(Origin)
    return max(rates.origin, rates.power_origin, key=order.index)
