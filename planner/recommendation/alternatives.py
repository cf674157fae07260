"""Names the rows of an answer that a person compares with the recommended one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from planner.cost.budget import needed_bytes
from planner.recommendation.answer import Alternative, AlternativeName, FrontEntry
from planner.recommendation.baselines import Baseline
from planner.recommendation.choose import ChosenEntry
from planner.recommendation.named_rows import (
    SAFE_COST_RATIO,
    best_of_backbones,
    named_rows,
)
from planner.recommendation.ranking import WORTHWHILE, Question
from planner.search.problem import TrialResult
from profiler.units import format_bytes_as, format_seconds

BEST_AT: tuple[AlternativeName, ...] = ("fastest", "most accurate", "smallest", "safest")
"""Names of rows that are the best in a property; every answer has them."""


def named_alternatives(
    entries: Sequence[FrontEntry],
    choice: ChosenEntry,
    baselines: Mapping[str, Baseline],
    *,
    question: Question,
    searched: Sequence[TrialResult],
) -> tuple[Alternative, ...]:
    """Return the named rows; one row may have several names.

    Args:
        entries: rows of the answer, at least one.
        choice: the recommended row and its ties.
        baselines: the paper's defaults.
        question: budget, number of images and objective.
        searched: all results of the search, for the memory that ``full`` needs if it does not fit.
    """
    best = entries[choice.index].result.score
    equals = {choice.index, *choice.ties}
    # Rows that the evidence of this answer puts below the recommended one are not equal to it.
    results = [
        replace(entry.result, score=best if i in equals else min(best - 1, entry.result.score))
        for i, entry in enumerate(entries)
    ]
    rows = named_rows(results, question)
    place = {id(result): i for i, result in enumerate(results)}
    return (
        *(
            Alternative(
                name=name,
                index=place[id(rows[name])],
                note=_row_note(name, entries[place[id(rows[name])]], question),
            )
            for name in BEST_AT
        ),
        *_other_backbones(entries, choice.index, question),
        *_full(rows, place, searched, question.budget_bytes),
        *_paper(rows, place, baselines, question.budget_bytes),
    )


def _other_backbones(
    entries: Sequence[FrontEntry], recommended: int, question: Question
) -> Iterator[Alternative]:
    """Yield the best row of each backbone that is not the recommended one."""
    results = [entry.result for entry in entries]
    chosen = results[recommended].candidate.workload.model
    for model, row in best_of_backbones(results, question).items():
        if model != chosen:
            index = next(i for i, result in enumerate(results) if result is row)
            yield Alternative(
                name="backbone", index=index, note=f"the best of {model}: {row.reason}"
            )


def _row_note(name: AlternativeName, entry: FrontEntry, question: Question) -> str:
    """Return the property of a named row, as the rule of ``named_rows`` has it."""
    prediction = entry.plan.prediction
    need = format_bytes_as(needed_bytes(prediction), entry.plan.budget_bytes)
    close = f"within {WORTHWHILE:.0%} of the least"
    match name:
        case "fastest":
            seconds = format_seconds(prediction.step_seconds)
            return f"{seconds} a step, {close} time an image of its equals that leave a margin"
        case "smallest":
            return f"{need}, the least of its equals, whatever it costs"
        case "safest":
            return f"{need}, the widest margin for at most {SAFE_COST_RATIO - 1:.0%} more cost"
        case _ if question.evidence(entry.result).effect is None:
            return "the least cost of those expected to be the most accurate; none was compared"
        case _:
            return "the highest mean accuracy in published comparisons, beyond what they can tell"


def _full(
    rows: Mapping[str, TrialResult],
    place: Mapping[int, int],
    searched: Sequence[TrialResult],
    budget_bytes: int,
) -> Iterator[Alternative]:
    tried = [r for r in searched if r.candidate.workload.method == "full"]
    if "full" in rows:
        index = place[id(rows["full"])]
        yield Alternative(name="full", index=index, note="every parameter learns")
    elif tried:
        least = min(result.device_bytes for result in tried)
        note = f"needs {format_bytes_as(least, budget_bytes)} or more, does not fit"
        if least <= budget_bytes:
            note = (
                f"needs {format_bytes_as(least, budget_bytes)} or more; not kept, by a limit or "
                "because the budget leaves too little for the prediction's error"
            )
        yield Alternative(name="full", index=None, note=note)


def _paper(
    rows: Mapping[str, TrialResult],
    place: Mapping[int, int],
    baselines: Mapping[str, Baseline],
    budget_bytes: int,
) -> Iterator[Alternative]:
    baseline = baselines.get("lora")
    if "paper" in rows:
        index = place[id(rows["paper"])]
        yield Alternative(name="paper", index=index, note="the default of arXiv 2607.02158")
    elif baseline is not None and not baseline.fits:
        need = format_bytes_as(needed_bytes(baseline.prediction), budget_bytes)
        yield Alternative(name="paper", index=None, note=f"needs {need}, does not fit")
