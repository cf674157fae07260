"""The scores of several plans, and for which weights of the costs another plan would win.

    training_costs    costs of training as a plan records them
    compare_plans     for each cost of training, the winner by the weight of the costs

Only plans whose accuracy was measured or published are compared. An accuracy after the few steps
of a validation, a derived one and that of a probe's short trainings do not rank finished models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from planner.cost.budget import needed_bytes
from planner.plan import Plan
from planner.recommendation.ranking_accuracy import ranks_candidates
from planner.recommendation.score_inputs import read_scored_plan, score_inputs
from planner.scoring.sensitivity import ScoredPlan, WinningRange, winning_ranges
from planner.scoring.training_scores import IMAGES, TRAINING_FORMULAS, TrainingCosts
from profiler.errors import InputError

SCORED_KINDS = ("measured", "published")
"""Kinds of an accuracy that scores are computed from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreTarget:
    """A plan file or a trained folder with the numbers that scores need.

    Attributes:
        path: the file or folder.
        accuracy_percent: its accuracy in percent.
        costs: its costs of training.
    """

    path: Path
    accuracy_percent: float
    costs: TrainingCosts


def training_costs(plan: Plan) -> TrainingCosts:
    """Return the costs of training that a plan predicts."""
    prediction = plan.prediction
    images = prediction.candidate.workload.effective_batch
    seconds, joules = (
        None if value is None or value <= 0 else value * IMAGES / images
        for value in (prediction.step_seconds, prediction.energy_joules)
    )
    budget = plan.budget_bytes
    share = needed_bytes(prediction) / budget if budget else None
    return TrainingCosts(budget_share=share, seconds=seconds, joules=joules)


def read_score_target(path: Path) -> ScoreTarget:
    """Read a plan file or a trained folder.

    Raises:
        InputError: it is neither, or has no accuracy that was measured or published.
    """
    accuracy = score_inputs(path).get("accuracy_percent")
    plan = read_scored_plan(path)
    is_scored = path.is_dir() or (plan.accuracy.kind in SCORED_KINDS and ranks_candidates(plan))
    if accuracy is None or not is_scored:
        raise InputError(
            f"{path} has no accuracy that was measured in a whole training or published "
            f"(its kind is {plan.accuracy.kind!r}); train the plan, or give one --accuracy"
        )
    return ScoreTarget(path=path, accuracy_percent=accuracy, costs=training_costs(plan))


def compare_plans(
    targets: Sequence[ScoreTarget], *, accuracy_exponent: float
) -> Mapping[str, tuple[WinningRange, ...]]:
    """Return the winners by the weight of the costs, for each score that all targets have.

    Args:
        targets: plans to compare.
        accuracy_exponent: exponent of the accuracy.
    """
    found = {}
    for name, (_, needs) in TRAINING_FORMULAS.items():
        costs = [[getattr(each.costs, need) for need in needs] for each in targets]
        if any(cost is None for line in costs for cost in line):
            continue
        found[name] = winning_ranges(
            [
                ScoredPlan(
                    name=str(each.path), accuracy_percent=each.accuracy_percent, costs=tuple(line)
                )
                for each, line in zip(targets, costs, strict=True)
            ],
            accuracy_exponent=accuracy_exponent,
        )
    return found
