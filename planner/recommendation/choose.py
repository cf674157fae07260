"""Chooses one entry of the front and gives the reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from planner.cost.place_within_budget import needed_bytes
from planner.recommendation.answer import EQUAL_SCORES, Entry, describe
from planner.scoring.netscore import train_score
from planner.search.pareto import BestScore
from planner.search.problem import OBJECTIVES, Evaluation
from profiler.units import format_bytes, format_joules, format_seconds

if TYPE_CHECKING:
    pass

TELLING_STEPS = 50

TELLING_IMAGES = 200
"""Below these an accuracy shows that training works, and cannot tell candidates apart: with 200
images its standard error is up to 3.5 %."""


def choose(entries: Sequence[Entry]) -> tuple[int, str]:
    """Return the entry to recommend and one sentence that says why.

    Only what was really run is eligible, if anything was. Where every eligible entry has an
    accuracy that means something (measured in a long enough run, or expected from published
    numbers) the best training score wins. Else the highest in the order of expected accuracy does,
    and among its equals the cheapest: memory within the budget is no cost.
    """
    pool = [i for i, e in enumerate(entries) if e.plan.measurement is not None]
    pool = pool or list(range(len(entries)))
    chosen = [entries[i] for i in pool]
    among = "really run" if chosen[0].plan.measurement is not None else "replayed"
    basis, values = _known_accuracies(chosen)
    predictions = [entry.plan.prediction for entry in chosen]
    spent = [(needed_bytes(report), report.energy_joules) for report in predictions]
    best = best_of([entry.evaluation for entry in chosen], values, spent)
    how = (
        f"best {basis} for its memory and energy among the {len(pool)} {among}"
        if values
        else f"none of the {len(pool)} {among} is expected to be more accurate (by published "
        "comparisons of methods; no accuracy is known here), and of those this is the cheapest"
    )
    return pool[best], _because(chosen[best], how)


def best_of(
    found: Sequence[Evaluation],
    accuracies: Sequence[float],
    spent: Sequence[tuple[int, float | None]],
) -> int:
    """Return the index of the best.

    Args:
        found: to choose from.
        accuracies: fraction of each; empty where they are not all known.
        spent: bytes of each, and joules of its step.
    """
    if not accuracies:
        highest = max(one.score for one in found)
        equals = [i for i, one in enumerate(found) if one.score > highest - EQUAL_SCORES]
        return min(equals, key=lambda i: found[i].cost)
    ranking = [
        train_score(accuracy_percent=100 * value, train_peak_bytes=size, step_joules=joules)
        for value, (size, joules) in zip(accuracies, spent, strict=True)
    ]
    return BestScore(scores=ranking).choose(
        [one.objectives for one in found], directions=OBJECTIVES
    )


def _known_accuracies(entries: Sequence[Entry]) -> tuple[str, list[float]]:
    """Return what the accuracies are and a fraction for every entry, or none at all."""
    measured = [v for v in (_long_run_accuracy(entry) for entry in entries) if v is not None]
    if len(measured) == len(entries):
        return "measured accuracy", measured
    expected = [e.expected.value for e in entries if e.expected.value is not None]
    if len(expected) == len(entries):
        return "published or derived accuracy", expected
    return "", []


def _long_run_accuracy(entry: Entry) -> float | None:
    """Return the measured accuracy of a run that was long enough to tell candidates apart."""
    seen, value = entry.plan.provenance.get("run"), entry.plan.accuracy.value
    if seen is None or value is None or value <= 0.01:
        return None
    is_long = len(seen["losses"]) >= TELLING_STEPS and seen["accuracy_images"] >= TELLING_IMAGES
    return value if is_long else None


def _because(entry: Entry, how: str) -> str:
    prediction = entry.plan.prediction
    cost = format_joules(prediction.energy_joules)
    if prediction.energy_joules is None:
        cost = format_seconds(prediction.step_seconds)
    return (
        f"{describe(entry.plan.candidate)}: {how}; it is predicted to need "
        f"{format_bytes(needed_bytes(prediction))} of {format_bytes(entry.plan.budget_bytes)} "
        f"and {cost} a step."
    )
