"""Chooses the entry of the front to recommend, and words the reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from planner.cost.budget import needed_bytes
from planner.recommendation.answer import DecidedBy, FrontEntry, candidate_summary
from planner.recommendation.method_reason import method_reason
from planner.recommendation.ranking import EDGE, WORTHWHILE, Question, best_of, equals_of
from planner.scoring.netscore import LOWEST_ACCURACY
from planner.search.problem import TrialResult
from profiler.units import format_asked, format_bytes_as, format_joules, format_seconds

if TYPE_CHECKING:
    from planner.training.validation import Validation

LONG_RUN_STEPS, LONG_RUN_IMAGES = 50, 200
"""Training steps and selection images from which a measured accuracy can rank candidates. With 200
images its standard error is up to 3.5 %. A shorter run shows only that training works."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenEntry:
    """The entry to recommend.

    Attributes:
        index: index of the entry.
        reason: one sentence: why this entry.
        ties: indices of the other entries that are expected to be as accurate.
        decided_by: the evidence that distinguishes the entry from the others.
        why: the cause in ``reason``, without the configuration and its cost; empty if not given.
    """

    index: int
    reason: str
    ties: tuple[int, ...]
    decided_by: DecidedBy
    why: str = ""


def choose(
    entries: Sequence[FrontEntry],
    *,
    question: Question,
    searched: Sequence[TrialResult] = (),
) -> ChosenEntry:
    """Return the entry to recommend, and the reason in one sentence.

    If any entry was really run, only those are eligible. Long runs of every eligible entry count
    before published comparisons of methods. The rules of ``ranking.best_of`` decide among entries
    that the evidence does not distinguish.

    Args:
        entries: entries of the answer, at least one.
        question: budget, number of images and objective.
        searched: candidates of the search that fit; empty to compare the entries alone.
    """
    measured = [i for i, entry in enumerate(entries) if entry.plan.measurement is not None]
    eligible = measured or list(range(len(entries)))
    intervals = {i: run for i in eligible if (run := _long_run(entries[i])) is not None}
    if len(intervals) < len(eligible):
        intervals = {}  # a measured accuracy does not compare with an expected one
    if intervals:
        highest = max(low for low, _ in intervals.values())
        equals = [i for i in eligible if intervals[i][1] >= highest]
    else:
        top = equals_of([entries[i].result for i in eligible])
        equals = [i for i in eligible if any(entries[i].result is row for row in top)]
    # The evidence above has decided on the accuracy, so the rules see equal scores.
    level = [replace(entries[i].result, score=0.0) for i in equals]
    best = best_of(level, question)
    index = next(i for i, row in zip(equals, level, strict=True) if row is best)
    kind = "really run" if measured else "replayed"
    why = (
        f"it has the best measured accuracy of the {len(eligible)} {kind} candidates, or costs "
        "least of those that the runs do not distinguish"
        if intervals
        else method_reason(
            entries[index].result,
            answered=[entry.result for entry in entries],
            question=question,
            searched=searched,
        )
    )
    return ChosenEntry(
        index=index,
        reason=_reason_sentence(entries[index], why, question),
        why=why,
        ties=tuple(
            i
            for i, entry in enumerate(entries)
            if i != index
            and (i in equals or _same_tier(entry, entries[index], by_interval=bool(intervals)))
        ),
        decided_by=_decided_by(entries[index], question, by_runs=bool(intervals)),
    )


def _same_tier(entry: FrontEntry, best: FrontEntry, *, by_interval: bool) -> bool:
    if by_interval:
        return False
    return len(equals_of([entry.result, best.result])) == 2


def is_long_run(run: Validation) -> bool:
    """Return whether the measured accuracy of a real run can rank candidates."""
    return len(run.losses) >= LONG_RUN_STEPS and run.accuracy_images >= LONG_RUN_IMAGES


def _long_run(entry: FrontEntry) -> tuple[float, float] | None:
    """Return the measured accuracy plus and minus a standard error; None after a short run."""
    run = entry.validation
    if run is None or not is_long_run(run):
        return None
    value = run.accuracy.value
    if value is None or value <= LOWEST_ACCURACY:
        return None
    error = math.sqrt(value * (1 - value) / run.accuracy_images)
    return value - error, value + error


def _decided_by(entry: FrontEntry, question: Question, *, by_runs: bool) -> DecidedBy:
    if by_runs:
        return "probe"
    return "published" if question.evidence(entry.result).tables else "cost"


def _reason_sentence(entry: FrontEntry, why: str, question: Question) -> str:
    prediction = entry.plan.prediction
    cost = format_joules(prediction.energy_joules)
    if prediction.energy_joules is None:
        cost = format_seconds(prediction.step_seconds)
    need_bytes, budget = needed_bytes(prediction), entry.plan.budget_bytes
    rest = ""
    if need_bytes <= EDGE * question.budget_bytes:
        rest = f" (no plan of this method and rank that uses the rest saves {WORTHWHILE:.0%})"
    return (
        f"{candidate_summary(entry.plan.candidate)}: {why}; it is predicted to need "
        f"{format_bytes_as(need_bytes, budget)} of {format_asked(budget)}{rest} "
        f"and {cost} per step."
    )
