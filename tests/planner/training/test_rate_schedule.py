"""The learning rate over the steps, and after a resume with another length."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from planner.recipe import Recipe
from planner.training.rate_schedule import RateSchedule
from profiler.errors import InputError

RECIPE = Recipe(learning_rate=1e-3, epochs=5, warm_up_steps=10, source="test")


def factors(schedule: RateSchedule, start: int = 0) -> list[float]:
    return [schedule.factor(step, RECIPE) for step in range(start, schedule.total_steps)]


def test_a_resume_of_the_same_length_changes_nothing() -> None:
    schedule = RateSchedule(total_steps=200)
    assert schedule.resumed(77, RECIPE, total_steps=200) == schedule


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 1 / 11), (4, 5 / 11), (10, 1.0), (105, 0.5), (199, 1e-3)],
)
def test_the_rate_rises_over_the_warm_up_and_falls_by_a_cosine(step: int, factor: float) -> None:
    """The cosine of 190 steps is at one half after 95, and never below a thousandth."""
    assert RateSchedule(total_steps=200).factor(step, RECIPE) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("step", "total", "least"),
    [(20, 400, 0.9932), (100, 400, 0.5413), (150, 160, 0.1614), (199, 1000, 0.1)],
)
def test_the_rate_never_rises_after_a_resume_of_another_length(
    step: int, total: int, least: float
) -> None:
    before = RateSchedule(total_steps=200)
    after = before.resumed(step, RECIPE, total_steps=total)
    rest = factors(after, step)
    assert rest[0] == pytest.approx(least, abs=5e-5)
    assert rest == sorted(rest, reverse=True)
    assert rest[-1] < 0.05 * least or total - step < 20
    # half-way through the rest, a cosine has fallen to one half
    assert after.factor((step + total) // 2, RECIPE) == pytest.approx(least / 2, rel=0.05)


def test_a_training_that_had_ended_goes_on_at_a_small_rate() -> None:
    after = RateSchedule(total_steps=200).resumed(200, RECIPE, total_steps=300)
    assert after.factor(200, RECIPE) == 0.1
    assert after.factor(250, RECIPE) == pytest.approx(0.05)
    assert after.factor(299, RECIPE) == 1e-3
    # and a second resume of the same length goes on from there
    assert after.resumed(250, RECIPE, total_steps=300) == after


@pytest.mark.parametrize("step", [1, 4, 9, 10])
@pytest.mark.parametrize("total", [60, 400])
def test_a_resume_within_the_warm_up_takes_the_new_length_whole(step: int, total: int) -> None:
    """The rate of a step of the warm-up is no height to fall from."""
    after = RateSchedule(total_steps=200).resumed(step, RECIPE, total_steps=total)
    assert factors(after) == factors(RateSchedule(total_steps=total))
    assert max(factors(after, step)) > 0.98
    assert after.start_step == step, "patience counts from here"
    if total == 400 and step < 10:
        again = after.resumed(10, RECIPE, total_steps=300)
        assert factors(again) == factors(RateSchedule(total_steps=300))
    later = after.resumed(35, RECIPE, total_steps=300)
    assert factors(later, 35) == sorted(factors(later, 35), reverse=True)
    assert later.factor(35, RECIPE) == after.factor(35, RECIPE)


def test_a_resume_within_a_warm_up_that_is_shorter_than_the_recipes() -> None:
    """A training of 30 steps has 3 steps of warm-up; the fourth is the cosine's second."""
    before = RateSchedule(total_steps=30)
    assert factors(before.resumed(3, RECIPE, total_steps=200)) == factors(
        RateSchedule(total_steps=200)
    )
    after = before.resumed(4, RECIPE, total_steps=200)
    assert after.factor(4, RECIPE) == before.factor(4, RECIPE) > 0.99
    assert max(factors(after, 4)) == before.factor(4, RECIPE)


@pytest.mark.parametrize("step", [1, 50])
def test_a_constant_rate_does_not_depend_on_the_length(step: int) -> None:
    constant = replace(RECIPE, schedule="constant")
    after = RateSchedule(total_steps=100).resumed(step, constant, total_steps=300)
    rates = [after.factor(at, constant) for at in range(step, 300)]
    assert rates == [min(1, (at + 1) / 11) for at in range(step, 300)]


def test_a_schedule_of_an_earlier_version_without_a_resume_is_whole() -> None:
    data = {"total_steps": 200, "start_step": 0, "start_factor": 1.0}
    assert factors(RateSchedule.from_json(data)) == factors(RateSchedule(total_steps=200))


def test_a_training_that_had_not_begun_takes_the_new_length_whole() -> None:
    after = RateSchedule(total_steps=200).resumed(0, RECIPE, total_steps=300)
    assert after == RateSchedule(total_steps=300)


def test_a_schedule_survives_a_checkpoint_and_an_edited_one_is_refused() -> None:
    schedule = RateSchedule(total_steps=200).resumed(50, RECIPE, total_steps=300)
    data = json.loads(json.dumps(schedule.to_json()))
    assert RateSchedule.from_json(data) == schedule
    with pytest.raises(InputError):
        RateSchedule.from_json(data | {"start_factor": 7.0})
