"""Winners over the weights of the costs: closed form, and brute force on a grid."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.scoring.sensitivity import ScoredPlan, winning_ranges
from profiler.errors import UsageError


def plan(name: str, accuracy: float, *costs: float) -> ScoredPlan:
    return ScoredPlan(name=name, accuracy_percent=accuracy, costs=costs)


def score(each: ScoredPlan, weight: float) -> float:
    spent = weight * sum(map(math.log10, each.costs))
    return 20 * (2 * math.log10(each.accuracy_percent) - spent)


def test_two_plans_change_places_where_their_scores_are_equal() -> None:
    accurate, cheap = plan("accurate", 90, 1000.0), plan("cheap", 80, 10.0)
    first, second = winning_ranges([cheap, accurate])
    # 2 log10(90/80) = w (3 - 1)
    expected = math.log10(90 / 80)
    assert (first.name, first.low) == ("accurate", 0)
    assert first.high == second.low == pytest.approx(expected)
    assert (second.name, second.high) == ("cheap", None)
    assert score(accurate, expected) == pytest.approx(score(cheap, expected))


def test_a_plan_that_is_better_in_everything_always_wins() -> None:
    (only,) = winning_ranges([plan("b", 80, 10.0, 5.0), plan("a", 90, 9.0, 5.0)])
    assert (only.name, only.low, only.high) == ("a", 0, None)


PLANS = st.lists(
    st.builds(
        plan,
        st.uuids().map(str),
        st.floats(2, 100),
        st.floats(0.01, 1e6),
        st.floats(0.01, 1e6),
    ),
    min_size=1,
    max_size=6,
)


@given(PLANS, st.floats(0, 4))
def test_the_winner_of_a_range_has_the_highest_score_in_it(
    plans: list[ScoredPlan], weight: float
) -> None:
    ranges = winning_ranges(plans)
    assert ranges[0].low == 0
    assert ranges[-1].high is None
    assert all(a.high == b.low for a, b in pairwise(ranges))
    here = next(r for r in ranges if r.low <= weight and (r.high is None or weight <= r.high))
    winner = next(each for each in plans if each.name == here.name)
    best = max(score(each, weight) for each in plans)
    assert score(winner, weight) == pytest.approx(best, abs=1e-6)


def test_numbers_that_cannot_be_scored_are_refused() -> None:
    with pytest.raises(UsageError, match="positive"):
        winning_ranges([plan("a", 90, 0.0)])
    with pytest.raises(UsageError, match="exponent of the accuracy must be 0 or more, got -1"):
        winning_ranges([plan("a", 90, 1.0)], accuracy_exponent=-1.0)
    with pytest.raises(UsageError, match="same costs"):
        winning_ranges([plan("a", 90, 1.0), plan("b", 90, 1.0, 2.0)])


def test_without_weight_of_the_accuracy_the_cheapest_wins_everywhere() -> None:
    found = winning_ranges(
        [plan("accurate", 90, 100.0), plan("cheap", 10, 1.0)], accuracy_exponent=0.0
    )
    assert [(each.name, each.low, each.high) for each in found] == [("cheap", 0, None)]
