"""Chooses the entry of the front to recommend, and words the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from planner.cost.budget import needed_bytes
from planner.plan import Plan
from planner.recommendation.answer import DecidedBy, FrontEntry, candidate_summary
from planner.recommendation.method_reason import cheaper_equal, method_reason
from planner.recommendation.ranking import EDGE, WORTHWHILE, Question, best_of, equals_of
from planner.scoring.netscore import LOWEST_ACCURACY
from planner.scoring.standard_error import standard_error
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
    results = [entry.result for entry in entries]
    # the rows of the answer are compared by their replays, also with the rest of the search
    replayed = {result.point: result for result in results}
    searched = [replayed.get(result.point, result) for result in searched]
    measured = [i for i, entry in enumerate(entries) if entry.plan.measurement is not None]
    eligible = measured or list(range(len(entries)))
    intervals = _measured_accuracies(entries, eligible, question)
    equals = _equals_by_runs(intervals) if intervals else _equals_by_evidence(results, eligible)
    index = _best_of_equals(results, equals, question)
    chosen = results[index]
    if intervals:
        rivals = [results[i] for i in equals]
        why = (
            f"it has the best measured accuracy of the {len(eligible)} really run candidates, or "
            "costs least of those that the runs do not distinguish"
        )
    else:
        # An entry that did not run can be expected to be as accurate as the recommended one.
        rivals = [row for row in searched or results if len(equals_of([row, chosen])) == 2]
        equals = [i for i, row in enumerate(results) if len(equals_of([row, chosen])) == 2]
        why = method_reason(chosen, answered=results, question=question, searched=searched)
    if cheaper := cheaper_equal(chosen, rivals, question):
        why = f"{why}; {cheaper}"
    return ChosenEntry(
        index=index,
        reason=reason_sentence(
            entries[index].plan, why, remark=_unused_budget(entries[index], question)
        ),
        why=why,
        ties=tuple(i for i in equals if i != index),
        decided_by=_decided_by(entries[index], question, by_runs=bool(intervals)),
    )


def _measured_accuracies(
    entries: Sequence[FrontEntry], eligible: Sequence[int], question: Question
) -> dict[int, tuple[float, float]]:
    """Return the interval of the measured accuracy of each eligible entry, by its index.

    Empty unless every eligible entry had a long run: a measured accuracy does not compare with an
    expected one.
    """
    found = {i: run for i in eligible if (run := _long_run(entries[i], question)) is not None}
    return found if len(found) == len(eligible) else {}


def _equals_by_runs(intervals: Mapping[int, tuple[float, float]]) -> list[int]:
    """Return the entries whose interval reaches the highest lower end."""
    highest_low = max(low for low, _ in intervals.values())
    return [i for i, (_, high) in intervals.items() if high >= highest_low]


def _equals_by_evidence(results: Sequence[TrialResult], eligible: Sequence[int]) -> list[int]:
    """Return the eligible entries of the highest accuracy score."""
    top = {id(row) for row in equals_of([results[i] for i in eligible])}
    return [i for i in eligible if id(results[i]) in top]


def _best_of_equals(
    results: Sequence[TrialResult], equals: Sequence[int], question: Question
) -> int:
    """Return the entry that the rules of the ranking take of equally accurate ones."""
    level = [replace(results[i], score=0.0) for i in equals]
    best = best_of(level, question)
    return next(i for i, row in zip(equals, level, strict=True) if row is best)


def is_long_run(run: Validation) -> bool:
    """Return whether the measured accuracy of a real run can rank candidates."""
    return len(run.losses) >= LONG_RUN_STEPS and run.accuracy_images >= LONG_RUN_IMAGES


def _long_run(entry: FrontEntry, question: Question) -> tuple[float, float] | None:
    """Return the measured accuracy plus and minus a standard error; None after a short run.

    None also after a run from random weights in place of the plan's pretrained ones, which order
    methods in another way.
    """
    run = entry.validation
    if run is None or not is_long_run(run):
        return None
    if question.pretrained and run.weights.kind == "random":
        return None
    value = run.accuracy.value
    if value is None or value <= LOWEST_ACCURACY:
        return None
    error = standard_error(value, images=run.accuracy_images)
    return value - error, value + error


def _decided_by(entry: FrontEntry, question: Question, *, by_runs: bool) -> DecidedBy:
    if by_runs:
        return "probe"
    return "published" if question.evidence(entry.result).tables else "cost"


def _unused_budget(entry: FrontEntry, question: Question) -> str:
    """Return why an entry leaves a part of the budget unused; empty if it uses nearly all."""
    if needed_bytes(entry.plan.prediction) > EDGE * question.budget_bytes:
        return ""
    return f" (no plan of its method and rank within {EDGE:.0%} of that saves {WORTHWHILE:.0%})"


def reason_sentence(plan: Plan, why: str, *, remark: str = "") -> str:
    """Return why a plan is recommended and what it costs, as a sentence.

    Args:
        plan: the plan.
        why: the cause, as a clause.
        remark: remark behind the budget, in brackets, with a blank in front.
    """
    prediction, budget_bytes = plan.prediction, plan.budget_bytes
    cost = format_joules(prediction.energy_joules)
    if prediction.energy_joules is None:
        cost = format_seconds(prediction.step_seconds)
    return (
        f"{candidate_summary(plan.candidate)}: {why}; it is predicted to need "
        f"{format_bytes_as(needed_bytes(prediction), budget_bytes)} of "
        f"{format_asked(budget_bytes)}{remark} and {cost} per step."
    )
