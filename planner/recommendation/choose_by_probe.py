"""Chooses the entry to recommend by the short trainings of a probe.

An entry counts as equal to the best if its accuracy is lower by one point at most, with a
probability of ``EQUAL_FROM`` at least. Among equal entries the objective decides: the least energy
(``balanced``, ``energy``), the least time (``time``), or the highest probability of being the best
(``accuracy``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from planner.recommendation.answer import FrontEntry
from planner.recommendation.checks import CheckedCandidate
from planner.recommendation.choose import ChosenEntry, reason_sentence
from planner.recommendation.objective import Objective
from planner.recommendation.probe_front import ProbeOutcome
from planner.training.probe_statistics import LearnerEstimate, format_chance
from profiler.records import Report

EQUAL_FROM = 0.5
"""Probability of being within one point of the best, from which an entry counts as equal to it."""


def choose_by_probe(
    entries: Sequence[FrontEntry], probe: ProbeOutcome | None, *, objective: Objective
) -> ChosenEntry | None:
    """Return the entry to recommend; None if the probe trained no eligible one.

    If any entry was really run, only those are eligible.

    Args:
        entries: rows of the answer.
        probe: result of the probe; None without one.
        objective: criterion for entries that count as equal.
    """
    if probe is None:
        return None
    estimates = [probe.estimate_of(entry.plan.candidate.workload) for entry in entries]
    reports = [entry.plan.prediction for entry in entries]
    ran = [i for i, entry in enumerate(entries) if entry.plan.measurement is not None]
    index = preferred(estimates, reports, objective, eligible=ran or range(len(entries)))
    if index is None:
        return None
    equal = [i for i, each in enumerate(estimates) if each is not None and is_equal(each)]
    why = why_chosen(estimates, index)
    return ChosenEntry(
        index=index,
        reason=reason_sentence(entries[index].plan, why),
        ties=tuple(i for i in equal if i != index),
        decided_by="probe",
        why=why,
    )


def best_first(
    candidates: Sequence[CheckedCandidate], probe: ProbeOutcome | None, objective: Objective
) -> Sequence[CheckedCandidate]:
    """Return candidates with the one that the probe prefers first, if there is a probe.

    Args:
        candidates: candidates of the front.
        probe: result of the probe; None without one.
        objective: criterion for candidates that count as equal.
    """
    if probe is None:
        return candidates
    estimates = [probe.estimate_of(each.candidate.workload) for each in candidates]
    reports = [each.prediction for each in candidates]
    rest, order = list(range(len(candidates))), list[int]()
    while (index := preferred(estimates, reports, objective, eligible=rest)) is not None:
        order.append(index)
        rest.remove(index)
    return [candidates[i] for i in (*order, *rest)]


def preferred(
    estimates: Sequence[LearnerEstimate | None],
    reports: Sequence[Report],
    objective: Objective,
    *,
    eligible: Sequence[int],
) -> int | None:
    """Return the index of the candidate to prefer; None if no eligible one could be trained.

    Args:
        estimates: estimate of each candidate.
        reports: prediction of each candidate.
        objective: criterion for candidates that count as equal.
        eligible: indices to choose from.
    """
    trained = [
        (i, each) for i in eligible if (each := estimates[i]) is not None and not each.diverged
    ]
    if not trained:
        return None
    best = max(each.best for _, each in trained)
    if objective == "accuracy":
        pool = [i for i, each in trained if each.best == best]
    else:
        pool = [i for i, each in trained if is_equal(each) or each.best == best]
    return min(pool, key=lambda i: _cost(reports[i], by_time=objective == "time"))


def is_equal(estimate: LearnerEstimate) -> bool:
    """Return whether a learner counts as equal to the best of the probe."""
    return not estimate.diverged and estimate.near_best >= EQUAL_FROM


def _cost(report: Report, *, by_time: bool) -> tuple[float, float]:
    """Return (joules, seconds) per image, or the reverse; unknown numbers are infinite."""
    images = report.candidate.workload.effective_batch
    joules, seconds = (
        math.inf if value is None else value / images
        for value in (report.energy_joules, report.step_seconds)
    )
    return (seconds, joules) if by_time else (joules, seconds)


def why_chosen(estimates: Sequence[LearnerEstimate | None], index: int) -> str:
    """Return why an entry is recommended, as a clause."""
    chosen = estimates[index]
    assert chosen is not None
    leader = max((each for each in estimates if each is not None), key=lambda each: each.best)
    rank = f"with a probability of {format_chance(chosen.best)} the best of the candidates"
    if chosen.best < leader.best and is_equal(chosen):
        rank = f"within one point of {leader.learner}, the best with {format_chance(leader.best)},"
    text = (
        f"{rank} trained here ({100 * chosen.accuracy:.1f} % of held-out images right after "
        f"{chosen.steps} steps, "
        f"{100 * chosen.low:.1f} to {100 * chosen.high:.1f} % expected of the plan)"
    )
    others = {
        each.learner: each
        for each in estimates
        if each is not None and is_equal(each) and each.learner != chosen.learner
    }
    if not others:
        return text
    verb = "is" if len(others) == 1 else "are"
    return f"{text}; {', '.join(others)} {verb} within one point of the best"
