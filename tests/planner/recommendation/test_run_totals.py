"""Totals of a training in closed form."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from planner.recipe import Recipe
from planner.recommendation.request import EnergyRates
from planner.recommendation.run_totals import run_totals
from profiler.errors import UsageError
from profiler.records import ValueInterval
from profiler.workload import Workload

STEP = SimpleNamespace(
    step_seconds=0.5,
    step_seconds_interval=ValueInterval(low=0.25, high=1.0, coverage=0.9),
    energy_joules=36.0,
    energy_joules_interval=None,
)
PLAN: Any = SimpleNamespace(
    recipe=Recipe(learning_rate=1e-3, epochs=10, source="for this test"),
    candidate=SimpleNamespace(workload=Workload(model="test_vit", micro_batch=8, accumulation=4)),
    prediction=STEP,
)
RATES = EnergyRates(price_per_kwh=0.3, grams_per_kwh=400.0)


def test_a_training_is_its_steps():
    # 1,000 images in batches of 32: 31 steps an epoch, 310 in all
    found = run_totals(PLAN, images=1000, rates=RATES)
    assert found is not None
    assert (found.steps, found.epoch_seconds, found.run_seconds) == (310, 15.5, 155.0)
    interval = found.run_seconds_interval
    assert interval == ValueInterval(low=77.5, high=310.0, coverage=0.9)
    assert found.run_kwh == pytest.approx(310 * 36 / 3.6e6)
    assert found.price == pytest.approx(0.3 * 310 * 36 / 3.6e6)
    assert found.grams_co2 == pytest.approx(400 * 310 * 36 / 3.6e6)


def test_unknown_quantities_have_no_totals():
    unknown = SimpleNamespace(**{**vars(STEP), "energy_joules": None, "step_seconds": None})
    plan: Any = SimpleNamespace(**{**vars(PLAN), "prediction": unknown})
    found = run_totals(plan, images=5, rates=RATES)
    assert found is not None
    assert found.steps == 10  # an epoch of less than a batch is one step
    assert (found.run_seconds, found.run_kwh, found.price, found.grams_co2) == (None,) * 4
    priced = run_totals(PLAN, images=1000, rates=RATES)
    assert priced is not None
    without = replace(priced, price=None, grams_co2=None)
    assert run_totals(PLAN, images=1000, rates=EnergyRates()) == without


@pytest.mark.parametrize("rate", [-0.1, float("inf"), float("nan")])
def test_rates_are_checked(rate: float):
    with pytest.raises(UsageError, match="price_per_kwh must be 0 or more"):
        EnergyRates(price_per_kwh=rate)
