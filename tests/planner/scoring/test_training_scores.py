"""The training scores in closed form."""

from __future__ import annotations

import math

import pytest

from planner.scoring.netscore import compute_scores
from planner.scoring.training_scores import (
    TRAINING_FORMULAS,
    TrainingCosts,
    TrainingScores,
    training_scores,
)
from profiler.errors import UsageError


def test_each_score_is_its_formula() -> None:
    found = training_scores(
        TrainingCosts(budget_share=0.5, seconds=20.0, joules=300.0), accuracy_percent=80
    )
    height = 40 * math.log10(80)
    assert found.budget_fit == pytest.approx(height - 2.5 * math.log10(0.5))
    assert found.train_time == pytest.approx(height - 2.5 * math.log10(20))
    assert found.train_energy == pytest.approx(height - 2.5 * math.log10(300))
    assert found.train_all == pytest.approx(height - 2.5 * math.log10(0.5 * 20 * 300))
    assert set(TRAINING_FORMULAS) == set(found.to_json())


def test_the_form_is_that_of_the_papers_score_for_memory() -> None:
    share = training_scores(TrainingCosts(budget_share=1084.0), accuracy_percent=89.7)
    paper = compute_scores(accuracy_percent=89.7, inference_peak_mib=1084.0)
    assert share.budget_fit == pytest.approx(paper.ns_m)


def test_unknown_costs_give_no_score_and_bad_numbers_are_refused() -> None:
    assert training_scores(TrainingCosts(), accuracy_percent=80) == TrainingScores()
    with pytest.raises(UsageError, match="positive"):
        training_scores(TrainingCosts(seconds=0.0), accuracy_percent=80)
    with pytest.raises(UsageError, match="exponent of the cost"):
        training_scores(TrainingCosts(seconds=1.0), accuracy_percent=80, cost_exponent=-1)
