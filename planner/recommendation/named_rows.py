"""Selects the rows that a person compares with the recommended one, from all that fit.

    named_rows    the candidate of each name that there is one for
    best_of_backbones   the best candidate of each backbone, if there are several
    answer_rows   these, the recommended one first, and the best of other methods
    probe_rows    these, and the best of every method that learns in a way of its own

``fastest``, ``smallest`` and ``safest`` are among the candidates that are expected to be as
accurate as the recommended one, with the rank nearest to the published default of each method: a
prefix of two tokens is the smallest only on paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from planner.recommendation.baselines import PAPER_BATCH, PAPER_RANK
from planner.recommendation.ranking import (
    WORTHWHILE,
    Question,
    best_configuration,
    best_of,
    equals_of,
    near_default_ranks,
    of_method,
    within_edge,
)
from planner.scoring.published_tables import table_name
from planner.search.problem import TrialResult

FEWEST_ROWS = 6
"""Rows that an answer has if there are as many methods."""

SAFE_COST_RATIO = 1.1
"""Cost of the safest row over that of the recommended one, at most."""


def named_rows(results: Sequence[TrialResult], question: Question) -> dict[str, TrialResult]:
    """Return the recommended row (``recommended``) and the alternatives by name.

    Args:
        results: candidates that fit the budget, at least one.
        question: budget, number of images and objective.
    """
    best = best_of(results, question)
    tier = near_default_ranks(equals_of(results))
    model = best.candidate.workload.model
    equals = [row for row in tier if row.candidate.workload.model == model]
    roomy = within_edge(equals, question)
    limit = SAFE_COST_RATIO * question.cost(best)
    steady = [row for row in roomy if question.cost(row) <= limit] or [best]
    rows = {
        "recommended": best,
        "fastest": _fastest(roomy, best),
        "most accurate": best_of(results, replace(question, objective="accuracy")),
        "safest": min(steady, key=lambda row: row.device_bytes),
        "smallest": _smallest(tier, question),
    }
    full = equals_of(of_method(results, "full") or [best])
    if full[0].candidate.workload.method == "full":
        rows["full"] = best_configuration(within_edge(full, question), question)
    paper = next((row for row in results if is_paper_default(row)), None)
    return rows if paper is None else rows | {"paper": paper}


def answer_rows(results: Sequence[TrialResult], question: Question) -> list[TrialResult]:
    """Return the different rows of an answer, the recommended one first.

    With several backbones, the best row of each is among them. If the names are of fewer than
    ``FEWEST_ROWS`` rows, the best configurations of other methods follow, the most accurate method
    first.

    Args:
        results: candidates that fit the budget, at least one.
        question: budget, number of images and objective.
    """
    rows = {id(row): row for row in named_rows(results, question).values()}
    rows |= {id(row): row for row in best_of_backbones(results, question).values()}
    seen = {row.candidate.workload.method for row in rows.values()}
    left = [row for row in results if row.candidate.workload.method not in seen]
    while left and len(rows) < FEWEST_ROWS:
        best = best_of(left, question)
        rows[id(best)] = best
        left = [r for r in left if r.candidate.workload.method != best.candidate.workload.method]
    return list(rows.values())


def probe_rows(results: Sequence[TrialResult], question: Question) -> list[TrialResult]:
    """Return the rows of an answer, and the best configuration of each further method.

    A probe compares methods on the user's images, so it also gets those that published comparisons
    rank low. A method that the comparisons equate with another, as ``dora`` with ``lora``, is left
    out: it would be trained for the same answer.

    Args:
        results: candidates that fit the budget, at least one.
        question: budget, number of images and objective.
    """
    rows = {id(row): row for row in answer_rows(results, question)}
    seen = {row.candidate.workload.method for row in rows.values()}
    for method in dict.fromkeys(row.candidate.workload.method for row in results):
        if method in seen or table_name(method) != method:
            continue
        of_this = equals_of(of_method(results, method))
        best = best_configuration(within_edge(of_this, question), question)
        rows[id(best)] = best
    return list(rows.values())


def best_of_backbones(results: Sequence[TrialResult], question: Question) -> dict[str, TrialResult]:
    """Return the best row of each backbone by its name; none if there is a single backbone."""
    models = dict.fromkeys(row.candidate.workload.model for row in results)
    if len(models) == 1:
        return {}
    return {
        model: best_of([r for r in results if r.candidate.workload.model == model], question)
        for model in models
    }


def is_paper_default(row: TrialResult) -> bool:
    """Return whether a row is the default of arXiv 2607.02158: LoRA of rank 8, 32 images, fp32."""
    workload = row.candidate.workload
    return row.candidate.placement.is_none and (
        workload.method,
        workload.rank,
        workload.micro_batch,
        workload.accumulation,
        workload.precision,
        workload.optimizer,
    ) == ("lora", PAPER_RANK, PAPER_BATCH, 1, "fp32", "adamw")


def _smallest(rows: Sequence[TrialResult], question: Question) -> TrialResult:
    """Return the row of the least memory, of several the cheapest; the same for any objective."""
    by_both = replace(question, objective="balanced")
    return min(rows, key=lambda row: (row.device_bytes, by_both.cost(row)))


def _fastest(rows: Sequence[TrialResult], best: TrialResult) -> TrialResult:
    """Return the fastest row; the recommended one if no other saves ``WORTHWHILE``."""
    fastest = min(rows, key=_seconds)
    return best if _seconds(best) <= (1 + WORTHWHILE) * _seconds(fastest) else fastest


def _seconds(row: TrialResult) -> float:
    images = row.candidate.workload.effective_batch
    return math.inf if row.step_seconds is None else row.step_seconds / images
