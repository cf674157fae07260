"""Ranks candidates: the accuracy to expect, the best of several, and the next one to check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner.recommendation.answer import EQUAL_SCORES
from planner.recommendation.request import Request
from planner.scoring.accuracy_prior import AccuracyEstimate, estimate_accuracy
from planner.scoring.netscore import train_score
from planner.search.pareto import hypervolume, reference_point
from planner.search.problem import OBJECTIVES, TrialResult
from profiler.units import DeviceBytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCost:
    """Cost of training that a candidate's accuracy is weighed against.

    Attributes:
        device_bytes: device memory of a training step.
        step_joules: energy of an optimizer step; None if the power is not known.
    """

    device_bytes: DeviceBytes
    step_joules: float | None


def expected_accuracy(request: Request, result: TrialResult) -> AccuracyEstimate:
    """Return the accuracy expected after a full training, as far as published numbers allow."""
    load = result.candidate.workload
    expected = estimate_accuracy(
        model=load.model,
        method=load.method,
        data=request.run.data,
        rank=load.rank,
        pretrained=request.has_weights,
    )
    if expected.kind == "published" and load.optimizer == "sgd":
        return replace(expected, kind="prior", reason=f"{expected.reason}, but with AdamW")
    return expected


def best_of(
    results: Sequence[TrialResult], accuracies: Sequence[float], costs: Sequence[TrainingCost]
) -> int:
    """Return the index of the best candidate.

    If all accuracies are known, the highest training score wins. Otherwise the highest accuracy
    score wins, and among equal scores the lowest cost objective.

    Args:
        results: the candidates.
        accuracies: accuracy of each as a fraction; empty if any is not known.
        costs: cost of training of each.
    """
    if not accuracies:
        highest = max(result.score for result in results)
        equals = [i for i, result in enumerate(results) if result.score > highest - EQUAL_SCORES]
        return min(equals, key=lambda i: results[i].cost)
    scores = [
        train_score(
            accuracy_percent=100 * accuracy,
            train_peak_bytes=cost.device_bytes,
            step_joules=cost.step_joules,
        )
        for accuracy, cost in zip(accuracies, costs, strict=True)
    ]
    return max(range(len(scores)), key=scores.__getitem__)


def next_to_check(
    request: Request, waiting: Sequence[TrialResult], checked: Sequence[TrialResult]
) -> int:
    """Return the index of the candidate in ``waiting`` to check next.

    The first is the one that would be recommended if every candidate passed. After it comes the one
    that adds the most hypervolume to those checked, so that a limited number of checks covers the
    front.
    """
    if not checked:
        expected = [expected_accuracy(request, result).value for result in waiting]
        known = [accuracy for accuracy in expected if accuracy is not None]
        costs = [
            TrainingCost(device_bytes=r.device_bytes, step_joules=r.energy_joules) for r in waiting
        ]
        return best_of(waiting, known if len(known) == len(waiting) else [], costs)
    points = [result.objectives for result in (*checked, *waiting)]
    corner = reference_point(points, directions=OBJECTIVES)
    front = [result.objectives for result in checked]

    def volume_with(index: int) -> float:
        more = [*front, waiting[index].objectives]
        return hypervolume(more, reference=corner, directions=OBJECTIVES)

    return max(range(len(waiting)), key=volume_with)
