"""The learning rate over the steps, and after a resume with another length."""

from __future__ import annotations

import json
import math

import pytest

from planner.recipe import LAST_RATE_FACTOR, Recipe
from planner.training.rate_schedule import LEAST_RESUMED_FACTOR, RateSchedule
from profiler.errors import InputError

RECIPE = Recipe(learning_rate=1e-3, epochs=5, warm_up_steps=10, source="test")


def factors(schedule: RateSchedule, start: int = 0) -> list[float]:
    return [schedule.factor(step, RECIPE) for step in range(start, schedule.total_steps)]


def test_a_resume_of_the_same_length_changes_nothing() -> None:
    schedule = RateSchedule(total_steps=200)
    assert schedule.resumed(77, RECIPE, total_steps=200) == schedule
    assert factors(schedule) == [RECIPE.rate_factor(s, total_steps=200) for s in range(200)]


@pytest.mark.parametrize(("step", "total"), [(20, 400), (100, 400), (150, 160), (199, 1000)])
def test_the_rate_never_rises_after_a_resume_of_another_length(step: int, total: int) -> None:
    before = RateSchedule(total_steps=200)
    after = before.resumed(step, RECIPE, total_steps=total)
    rest = factors(after, step)
    least = max(before.factor(step, RECIPE), LEAST_RESUMED_FACTOR)
    assert rest[0] == pytest.approx(least)
    assert rest == sorted(rest, reverse=True)
    assert rest[-1] < 0.05 * least or total - step < 20
    # half-way through the rest, a cosine has fallen to one half
    assert after.factor((step + total) // 2, RECIPE) == pytest.approx(least / 2, rel=0.05)


def test_a_training_that_had_ended_goes_on_at_a_small_rate() -> None:
    after = RateSchedule(total_steps=200).resumed(200, RECIPE, total_steps=300)
    assert after.factor(200, RECIPE) == LEAST_RESUMED_FACTOR
    assert after.factor(299, RECIPE) == pytest.approx(
        max(0.05 * (1 + math.cos(math.pi * 0.99)), LAST_RATE_FACTOR)
    )
    # and a second resume of the same length goes on from there
    assert after.resumed(250, RECIPE, total_steps=300) == after


def test_a_training_that_had_not_begun_takes_the_new_length_whole() -> None:
    after = RateSchedule(total_steps=200).resumed(0, RECIPE, total_steps=300)
    assert after == RateSchedule(total_steps=300)


def test_a_schedule_survives_a_checkpoint_and_an_edited_one_is_refused() -> None:
    schedule = RateSchedule(total_steps=200).resumed(50, RECIPE, total_steps=300)
    data = json.loads(json.dumps(schedule.to_json()))
    assert RateSchedule.from_json(data) == schedule
    with pytest.raises(InputError):
        RateSchedule.from_json(data | {"start_factor": 7.0})
