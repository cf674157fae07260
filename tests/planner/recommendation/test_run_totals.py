"""Totals of a training in closed form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from planner.recipe import Recipe
from planner.recommendation.build_request import build_request
from planner.recommendation.limits import exceeded_limit, within_cost_limits
from planner.recommendation.recipes import plan_recipe
from planner.recommendation.request import EnergyRates, Limits
from planner.recommendation.run_totals import RunTotals, run_totals
from planner.training.loop import LoopImages
from planner.training.plan_check import load_data_for
from profiler.devices.table import CPU
from profiler.errors import UnmetLimitError, UsageError
from profiler.records import DeviceLabel, Memory, Parameters, Report, Rung, ValueInterval
from profiler.units import GIB
from profiler.workload import Candidate, Workload

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


def totals_of(plan: Any, *, images: int, rates: EnergyRates = RATES) -> RunTotals | None:
    request: Any = SimpleNamespace(images_of=lambda recipe: images, energy_rates=rates)
    return run_totals(plan, request)


def report_of(load: Workload, *, seconds: float) -> Report:
    return Report(
        candidate=Candidate(workload=load),
        device=DeviceLabel(name="cpu", full_name="CPU", kind="cpu"),
        rung=Rung.COMPOSED,
        memory=Memory(peak_bytes=1),
        flops=None,
        step_seconds=seconds,
        energy_joules=None,
        parameters=Parameters(total=1, trainable=1),
    )


def test_a_training_is_its_steps():
    # 1,000 images in batches of 32: 31 steps an epoch, 310 in all
    found = totals_of(PLAN, images=1000)
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
    found = totals_of(plan, images=5)
    assert found is not None
    assert found.steps == 10  # an epoch of less than a batch is one step
    assert (found.run_seconds, found.run_kwh, found.price, found.grams_co2) == (None,) * 4
    priced = totals_of(PLAN, images=1000)
    assert priced is not None
    without = replace(priced, price=None, grams_co2=None)
    assert totals_of(PLAN, images=1000, rates=EnergyRates()) == without
    assert totals_of(SimpleNamespace(**{**vars(PLAN), "recipe": None}), images=1000) is None


@pytest.mark.parametrize("rate", [-0.1, float("inf"), float("nan")])
def test_rates_are_checked(rate: float):
    with pytest.raises(UsageError, match="price_per_kwh must be 0 or more"):
        EnergyRates(price_per_kwh=rate)


def test_a_recipe_that_selects_no_epoch_trains_on_the_selection_images_too(tmp_path: Path):
    """AdaLoRA's epochs are longer, so its duration and energy and their limits are larger."""
    asked = build_request(
        "test_vit",
        budget_bytes=GIB,
        data="digits",
        image_size=32,
        methods=["lora", "adalora"],
        pretrained=False,
        levers="none",
        validations=0,
        study="totals",
        out=tmp_path,
    )
    base = Workload(model="test_vit", num_classes=10, image_size=32, micro_batch=16)
    recipes, seconds = {}, {}
    cost: Any = SimpleNamespace(device=CPU)
    for method, images in (("lora", 1295), ("adalora", 1295 + 143)):
        load = base.replace(method=method, rank=4)
        recipes[method] = plan_recipe(asked, load)
        assert asked.images_of(recipes[method]) == images
        digits = load_data_for(load, "digits")
        assert len(LoopImages.of(digits, recipes[method]).train) == images
        step = report_of(load, seconds=3600.0)
        seconds[method] = recipes[method].epochs * (images // 16) * 3600.0
        for hours, reached in ((0.999, True), (1.001, False)):
            limits = Limits(max_hours=hours * seconds[method] / 3600)
            limited = replace(asked, limits=limits)
            assert (exceeded_limit(limited, step) is not None) == reached
            rows: Any = [SimpleNamespace(candidate=step.candidate, step_seconds=3600.0)]
            if reached:
                with pytest.raises(UnmetLimitError):
                    within_cost_limits(limited, rows, cost)
            else:
                assert within_cost_limits(limited, rows, cost) == rows
    assert seconds["adalora"] > seconds["lora"]
    rows = [
        SimpleNamespace(
            candidate=Candidate(workload=base.replace(method=method, rank=4)), step_seconds=3600.0
        )
        for method in recipes
    ]
    between = replace(asked, limits=Limits(max_hours=sum(seconds.values()) / 2 / 3600))
    assert within_cost_limits(between, rows, cost) == rows[:1]
