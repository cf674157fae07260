"""Words why a method is recommended, by the published comparisons that decided.

The methods that count as equal are those of the search, not only those with a row in the answer:
a method without a row can be better known than the recommended one.
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.recommendation.answer import EQUAL_SCORES, candidate_summary
from planner.recommendation.ranking import (
    WORTHWHILE,
    Question,
    best_configuration,
    best_known,
    best_of,
    equal_methods,
    equals_of,
    near_default_ranks,
    of_method,
    within_edge,
)
from planner.search.problem import TrialResult
from profiler.units import format_bytes_as

MOST_METHODS_NAMED = 3
"""Methods that the reason names, beyond which it counts them. The first screen has few lines."""

LEAST_SHOWN_SAVING = 0.0005
"""Relative saving below which a cheaper plan is not mentioned: it would print as 0.0 %."""


def method_reason(
    chosen: TrialResult,
    *,
    answered: Sequence[TrialResult],
    question: Question,
    searched: Sequence[TrialResult],
) -> str:
    """Return the reason for the method of a candidate, as a clause.

    Args:
        chosen: the recommended candidate.
        answered: candidates of the rows of the answer.
        question: budget, number of images and objective.
        searched: candidates of the search that fit; empty to compare the rows alone.
    """
    evidence = question.evidence(chosen)
    if not evidence.tables:
        return f"{evidence.reason}; it costs least of the candidates that nothing distinguishes"
    method, model = _method_of(chosen), chosen.candidate.workload.model
    rows = [row for row in searched if row.candidate.workload.model == model]
    tier = [row for row in rows if abs(row.score - chosen.score) < EQUAL_SCORES]
    if not of_method(tier, method):
        tier = [row for row in answered if len(equals_of([row, chosen])) == 2]
    equals = equal_methods(tier)
    failed = [
        name
        for name in equal_methods(rows)
        if rows and max(row.score for row in rows) >= chosen.score + EQUAL_SCORES
    ]
    rest = ""
    if failed:
        rest = (
            f"{', '.join(failed)} did not pass the later checks, though expected to be more "
            "accurate; of the others "
        )
    if equals == [method]:
        return (
            f"{rest}no other method that fits is expected to be as accurate (evidence "
            f"{evidence.strength})"
        )
    names = some_names([method, *(name for name in equals if name != method)])
    seen = {_method_of(row) for row in answered}
    # the first screen may cut the end off
    return (
        f"{rest}{_cause(method, tier, question, seen=seen)} of {len(equals)} methods that are "
        f"expected to be equally accurate ({names}); evidence {evidence.strength}"
    )


def some_names(names: Sequence[str]) -> str:
    """Return names in a row; of many the first ones and the number of the others."""
    if len(names) <= MOST_METHODS_NAMED + 1:
        return ", ".join(names)
    return f"{', '.join(names[:MOST_METHODS_NAMED])} and {len(names) - MOST_METHODS_NAMED} more"


def cheaper_equal(chosen: TrialResult, rows: Sequence[TrialResult], question: Question) -> str:
    """Return which plan costs a little less than the chosen one, and why that one is not taken.

    The text is empty unless the objective is a single cost, and if no plan costs less or one saves
    more than ``WORTHWHILE``: then another rule decided.

    Args:
        chosen: the recommended candidate.
        rows: candidates that are expected to be as accurate.
        question: budget, number of images and objective.
    """
    if question.objective not in ("time", "energy"):
        return ""
    pool = near_default_ranks(within_edge(rows, question))
    cheapest = min(pool, key=question.cost, default=chosen)
    saved = 1 - question.cost(cheapest) / question.cost(chosen)
    if not LEAST_SHOWN_SAVING < saved <= 1 - 1 / (1 + WORTHWHILE):
        return ""
    text = (
        f"{candidate_summary(cheapest.candidate)} takes {100 * saved:.1f} % less "
        f"{question.objective}"
    )
    more_bytes = cheapest.device_bytes - chosen.device_bytes
    if not cheapest.candidate.placement.is_none and chosen.candidate.placement.is_none:
        reason = ", but checkpoints"
    elif more_bytes > 0:
        reason = f", but needs {format_bytes_as(more_bytes, question.budget_bytes)} more"
    else:
        reason = ""
    return f"{text}{reason}: savings up to {WORTHWHILE:.0%} count as equal"


def _cause(method: str, tier: Sequence[TrialResult], question: Question, *, seen: set[str]) -> str:
    """Return the fact that distinguishes a method from the others of its tier, up to the word "of".

    Args:
        method: the chosen method.
        tier: candidates that are expected to be as accurate.
        question: budget, number of images and objective.
        seen: methods of the rows of the answer.
    """
    failed, left = list[str](), list(tier)
    while (best := best_of(left, question)) and _method_of(best) != method:
        if _method_of(best) not in seen:
            failed.append(_method_of(best))
        left = [row for row in left if _method_of(row) != _method_of(best)]
    rest = f"{', '.join(failed)} did not pass the later checks; " if failed else ""
    if question.objective != "balanced":
        return f"{rest}it is the best by {question.objective}"
    known = best_known(left, question)
    title = "best known" if known == equal_methods(left)[0] else "most often compared"
    if method == known:
        return f"{rest}it is the {title}"
    held = of_method(within_edge(left, question), known)
    if not held:
        return f"{rest}it leaves more of the budget free than {known}, the {title}"
    saved = 1 - question.cost(best) / question.cost(best_configuration(held, question))
    return f"{rest}it costs {100 * saved:.0f} % less than {known}, the {title}"


def _method_of(result: TrialResult) -> str:
    return result.candidate.workload.method
