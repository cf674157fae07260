"""Carries the accuracies of a probe over to candidates that it did not train.

    accuracy_expected  accuracy of a candidate by the probe, or by published numbers
    carried_accuracy   accuracy of a candidate from that of the nearest one that was trained
    remake_front       the rows of the answer, chosen anew by the probe's accuracies

In log-odds, the accuracy of an untrained method is that of a trained one, plus the difference of
the two methods' published effects. A method that published comparisons equate with a trained one
(``dora`` with ``lora``), and another rank, differ by the small effect of the rank alone. The
interval is wider by the error of such a difference (``planner.scoring.table_errors``).

The few steps of a validation change none of these accuracies: six steps show that a plan trains,
and nothing more (``build_entry.accuracy_after_run``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING

from planner.recommendation.answer import EQUAL_SCORES
from planner.recommendation.checks import CheckedCandidate, CheckOutcome
from planner.recommendation.choose_by_probe import is_equal
from planner.recommendation.probe_front import ProbeOutcome
from planner.recommendation.ranking import expected_accuracy
from planner.recommendation.replay_front import replay_front
from planner.recommendation.request import Notify, Request
from planner.scoring.accuracy_prior import COVERAGE, AccuracyEstimate
from planner.scoring.method_evidence import effective_rank, rank_step
from planner.scoring.published_tables import (
    compared_family,
    from_log_odds,
    log_odds,
    method_effects,
    regime_of,
    table_name,
)
from planner.scoring.table_errors import difference_error, interval_of
from planner.search.problem import SGD_STEP, TrialResult
from planner.training.probe_statistics import LearnerEstimate
from profiler.workload import Workload

if TYPE_CHECKING:
    from planner.cost.model import CostModel

NOTHING_FOLLOWS = -100.0
"""Score in log-odds of a candidate about which the probe says nothing: below every other."""

BELOW_ALL = 2 * NOTHING_FOLLOWS
"""Score of a candidate whose training diverged."""

SMALLEST_ERROR_RATE = 1e-3
"""Accuracies of 0 and 1 are moved inwards by this much, where their log-odds are finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Carried:
    """An accuracy in log-odds, carried over from a learner.

    Attributes:
        origin: learner that was trained.
        value: expected log-odds of the accuracy.
        error: standard deviation of the carrying alone, in log-odds.
        is_same_method: whether only rank or optimizer differ.
    """

    origin: LearnerEstimate
    value: float
    error: float
    is_same_method: bool


def accuracy_expected(
    request: Request, probe: ProbeOutcome | None, workload: Workload
) -> AccuracyEstimate:
    """Return the accuracy that a candidate is expected to have after its whole training.

    Args:
        request: the request.
        probe: result of the probe; None without one.
        workload: the candidate's workload.
    """
    if probe is None:
        return expected_accuracy(request, workload)
    trained = probe.estimate_of(workload)
    if trained is not None and trained.diverged:
        return AccuracyEstimate(
            value=None,
            kind=None,
            source=None,
            reason=f"its training of {trained.steps} steps diverged in the probe",
        )
    return (
        probe.expected_accuracy(workload)
        or carried_accuracy(probe, workload, train_images=request.balanced_images)
        or expected_accuracy(request, workload)
    )


def carried_accuracy(
    probe: ProbeOutcome, workload: Workload, *, train_images: int | None
) -> AccuracyEstimate | None:
    """Return the accuracy of a workload that the probe did not train; None if nothing follows.

    Args:
        probe: result of the probe.
        workload: the workload.
        train_images: number of training images, for the published comparisons.
    """
    carried = _carry(probe, workload, train_images)
    if carried is None:
        return None
    origin = carried.origin
    width = _finite_log_odds(origin.high) - _finite_log_odds(origin.low)
    own = width / (2 * NormalDist().inv_cdf((1 + COVERAGE) / 2))
    low, high = interval_of(carried.value, math.hypot(own, carried.error), coverage=COVERAGE)
    how = (
        "for another rank or optimizer"
        if carried.is_same_method
        else "by the published difference of the methods"
    )
    return AccuracyEstimate(
        value=from_log_odds(carried.value),
        kind="prior",
        source=f"probe of {origin.learner}",
        reason=f"not trained here: derived {how} from the {100 * origin.expected:.1f} % that "
        f"the probe expects of {origin.learner}",
        low=low,
        high=high,
        coverage=COVERAGE,
    )


def remake_front(
    request: Request,
    probe: ProbeOutcome | None,
    results: Sequence[TrialResult],
    replayed: CheckOutcome,
    *,
    cost: CostModel,
    notify: Notify,
) -> CheckOutcome:
    """Return the rows of the answer by the accuracies of the probe, replayed.

    Rows that the probe found equal to the best stay. Without a training, all rows stay whose result
    is given. After one, all scores are ``corrected_score``, and the highest comes first.

    Args:
        request: the request.
        probe: result of the probe; None without one.
        results: candidates of the search within the budget and the limits, that of the accuracy
            included.
        replayed: rows of the probe.
        cost: cost model that composed the results.
        notify: called with (stage, candidate, fraction of the stage done).
    """
    if probe is None:
        return replayed
    allowed = {each.point for each in results}
    known = [each for each in replayed.passed if each.result.point in allowed]
    if not probe.estimates and len(known) == len(replayed.passed):
        return replayed
    refused = {each.point for each in replayed.refused}

    def corrected(result: TrialResult) -> TrialResult:
        if not probe.estimates:
            return result
        workload = result.candidate.workload
        return replace(result, score=corrected_score(probe, workload, request.balanced_images))

    rows = [corrected(result) for result in results if result.point not in refused]
    remade = replay_front(request, rows, cost, notify, known=known)
    points = {each.result.point for each in remade.passed}
    kept = [
        replace(each, result=corrected(each.result))
        for each in known
        if each.result.point not in points and (_leads(probe, each) or not probe.estimates)
    ]
    return CheckOutcome(
        passed=tuple(sorted((*remade.passed, *kept), key=lambda each: -each.result.score)),
        dropped=(*replayed.dropped, *remade.dropped),
        notes=(*replayed.notes, *remade.notes),
    )


def _leads(probe: ProbeOutcome, checked: CheckedCandidate) -> bool:
    found = probe.estimate_of(checked.candidate.workload)
    return found is not None and is_equal(found)


def corrected_score(probe: ProbeOutcome, workload: Workload, train_images: int | None) -> float:
    """Return a score in log-odds: 0 for candidates equal to the best, less for all others.

    A candidate that was not trained never stands above the best trained one, and one whose training
    diverged stands below all.
    """
    found = probe.estimate_of(workload)
    if found is not None and found.diverged:
        return BELOW_ALL
    if found is not None and is_equal(found):
        return 0.0
    best = max(_finite_log_odds(each.expected) for each in probe.estimates.values())
    if found is not None:
        value = _finite_log_odds(found.expected)
    else:
        carried = _carry(probe, workload, train_images)
        if carried is None:
            return NOTHING_FOLLOWS
        if carried.is_same_method and is_equal(carried.origin):
            return min(0.0, carried.value - _finite_log_odds(carried.origin.expected))
        value = carried.value
    return min(-2 * EQUAL_SCORES, value - best)


def _carry(probe: ProbeOutcome, workload: Workload, train_images: int | None) -> _Carried | None:
    """Return the accuracy carried over from the nearest learner; None if there is none."""
    found: list[tuple[bool, float, _Carried]] = []
    for trained, estimate in probe.trained:
        difference = _log_odds_difference(workload, trained, train_images)
        if difference is None:
            continue
        step, error = difference
        is_same = table_name(workload.method) == table_name(trained.method)
        value = _finite_log_odds(estimate.expected) + step
        carried = _Carried(origin=estimate, value=value, error=error, is_same_method=is_same)
        found.append((is_same, -abs(step), carried))
    return max(found, key=lambda each: each[:2])[2] if found else None


def _log_odds_difference(
    workload: Workload, trained: Workload, train_images: int | None
) -> tuple[float, float] | None:
    """Return the expected log-odds of a workload less those of a trained one, and their error.

    None if nothing is known: the tables compare methods on a backbone, not backbones.
    """
    if trained.model != workload.model:
        return None
    step = rank_step(workload.method, effective_rank(workload.method, workload.rank))
    step -= rank_step(trained.method, effective_rank(trained.method, trained.rank))
    step -= SGD_STEP * ((workload.optimizer == "sgd") - (trained.optimizer == "sgd"))
    method, origin = table_name(workload.method), table_name(trained.method)
    if method == origin:
        return step, 0.0
    family, regime = compared_family(workload.model), regime_of(train_images)
    effects = method_effects(family, regime)
    if method not in effects or origin not in effects:
        return None
    step += effects[method] - effects[origin]
    return step, difference_error().deviation


def _finite_log_odds(accuracy: float) -> float:
    return log_odds(min(max(accuracy, SMALLEST_ERROR_RATE), 1 - SMALLEST_ERROR_RATE))
