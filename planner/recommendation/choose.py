"""Chooses the entry of the front to recommend, and words the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planner.cost.budget import needed_bytes
from planner.recommendation.answer import (
    EQUAL_SCORES,
    DecidedBy,
    FrontEntry,
    candidate_summary,
)
from planner.recommendation.objective import Objective
from planner.recommendation.ranking import TrainingCost, best_of
from planner.scoring.netscore import LOWEST_ACCURACY
from profiler.units import format_bytes, format_joules, format_seconds

LONG_RUN_STEPS = 50

LONG_RUN_IMAGES = 200
"""Training steps and test images from which a measured accuracy can rank candidates. With 200
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


def choose(entries: Sequence[FrontEntry], *, objective: Objective = "balanced") -> ChosenEntry:
    """Return the entry to recommend, and the reason in one sentence.

    If any entry was really run, only those are eligible. If every eligible entry has an accuracy
    that ranks candidates (measured in a long run, or expected from published numbers), the best
    training score wins. Otherwise the highest accuracy score wins, and among equal scores the
    lowest cost objective. Memory below the budget is then not counted as a cost.
    """
    measured = [i for i, entry in enumerate(entries) if entry.plan.measurement is not None]
    eligible = measured or list(range(len(entries)))
    pool = [entries[i] for i in eligible]
    basis, accuracies = _known_accuracies(pool)
    predictions = [entry.plan.prediction for entry in pool]
    costs = [
        TrainingCost(device_bytes=needed_bytes(report), step_joules=report.energy_joules)
        for report in predictions
    ]
    best = best_of([entry.result for entry in pool], accuracies, costs)
    candidates = f"{len(pool)} {'really run' if measured else 'replayed'} candidates"
    why = (
        f"it has the best {basis} for its memory and energy of the {candidates}"
        if accuracies
        else f"none of the {candidates} is expected to be more accurate (by published comparisons "
        "of methods; no accuracy is known here), and it costs least of those equal to it"
    )
    index = eligible[best]
    ties = tuple(
        i
        for i, entry in enumerate(entries)
        if i != index and abs(entry.result.score - entries[index].result.score) < EQUAL_SCORES
    )
    return ChosenEntry(
        index=index,
        reason=_reason_sentence(pool[best], why),
        ties=ties,
        decided_by="cost" if len(ties) == len(entries) - 1 else "published",
    )


def _known_accuracies(entries: Sequence[FrontEntry]) -> tuple[str, list[float]]:
    """Return the kind of the accuracies and a fraction per entry; no fractions if any is missing.

    Accuracies of different kinds do not compare, so all entries must have the same kind.
    """
    measured = [v for v in map(_long_run_accuracy, entries) if v is not None]
    if len(measured) == len(entries):
        return "measured accuracy", measured
    expected = [e.expected.value for e in entries if e.expected.value is not None]
    if len(expected) == len(entries):
        return "published or derived accuracy", expected
    return "", []


def _long_run_accuracy(entry: FrontEntry) -> float | None:
    """Return the measured accuracy as a fraction; None if the run was too short to rank by it."""
    run = entry.validation
    if run is None or len(run.losses) < LONG_RUN_STEPS or run.accuracy_images < LONG_RUN_IMAGES:
        return None
    value = run.accuracy.value
    return value if value is not None and value > LOWEST_ACCURACY else None


def _reason_sentence(entry: FrontEntry, why: str) -> str:
    prediction = entry.plan.prediction
    cost = format_joules(prediction.energy_joules)
    if prediction.energy_joules is None:
        cost = format_seconds(prediction.step_seconds)
    return (
        f"{candidate_summary(entry.plan.candidate)}: {why}; it is predicted to need "
        f"{format_bytes(needed_bytes(prediction))} of {format_bytes(entry.plan.budget_bytes)} "
        f"and {cost} per step."
    )
