"""Totals of a whole training: duration, energy, and price and emissions from the user's rates.

The length is that of the plan's recipe without an early stop, with a training step's time for each
step. Data loading and evaluation are left out, because their speed on the planned machine is not
known.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.plan import Plan
from planner.recommendation.request import Request
from profiler.records import ValueInterval

JOULES_PER_KWH = 3.6e6
"""Joules of a kilowatt-hour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTotals:
    """Totals of a plan; None for a quantity that is not known.

    Attributes:
        images: training images of an epoch.
        epochs: epochs of the recipe.
        steps: optimizer steps of all epochs.
        epoch_seconds: duration of an epoch.
        run_seconds: duration of all epochs.
        run_seconds_interval: its interval, from that of a step.
        run_kwh: energy of all epochs.
        run_kwh_interval: its interval, from that of a step.
        price: ``run_kwh`` times the user's price of a kWh.
        grams_co2: ``run_kwh`` times the user's grams for a kWh.
    """

    images: int
    epochs: int
    steps: int
    epoch_seconds: float | None
    run_seconds: float | None
    run_seconds_interval: ValueInterval | None
    run_kwh: float | None
    run_kwh_interval: ValueInterval | None
    price: float | None
    grams_co2: float | None


def run_totals(plan: Plan, request: Request) -> RunTotals | None:
    """Return the totals of a plan; None for a plan without a recipe.

    Args:
        plan: the plan.
        request: gives the images of an epoch, and the user's price and emissions of a kWh.
    """
    recipe, rates = plan.recipe, request.energy_rates
    if recipe is None:
        return None
    step, epochs, images = plan.prediction, recipe.epochs, request.images_of(recipe)
    steps = recipe.steps(images, effective_batch=plan.candidate.workload.effective_batch)
    kwh = known_times(step.energy_joules, steps / JOULES_PER_KWH)
    return RunTotals(
        images=images,
        epochs=epochs,
        steps=steps,
        epoch_seconds=known_times(step.step_seconds, steps // epochs),
        run_seconds=known_times(step.step_seconds, steps),
        run_seconds_interval=_interval_times(step.step_seconds_interval, steps),
        run_kwh=kwh,
        run_kwh_interval=_interval_times(step.energy_joules_interval, steps / JOULES_PER_KWH),
        price=known_times(kwh, rates.price_per_kwh),
        grams_co2=known_times(kwh, rates.grams_per_kwh),
    )


def known_times(value: float | None, factor: float | None) -> float | None:
    """Return a product; None if a factor is not known."""
    return None if value is None or factor is None else value * factor


def _interval_times(interval: ValueInterval | None, factor: float) -> ValueInterval | None:
    return None if interval is None else interval.times(factor)
