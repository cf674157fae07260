"""For which weights of the costs another plan would win a score.

A score of the NetScore family is 20 (alpha log10 a - w C), with the accuracy a in percent and C the
sum of the log10 of the costs. Over w each plan is a straight line, and the winners are the upper
envelope of the lines. It is found exactly: each crossing of the current winner with a line that
falls less steeply is a candidate, and the nearest is the next change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from planner.scoring.netscore import ACCURACY_EXPONENT
from profiler.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredPlan:
    """The accuracy and the costs of a plan.

    Attributes:
        name: name of the plan.
        accuracy_percent: top-1 accuracy in percent.
        costs: costs that the score weighs, in any unit that all plans share.
    """

    name: str
    accuracy_percent: float
    costs: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WinningRange:
    """A range of weights in which one plan wins.

    Attributes:
        name: name of the plan.
        low: lower end of the weight of each cost; 0 counts the accuracy alone.
        high: upper end; None without an end.
    """

    name: str
    low: float
    high: float | None


def winning_ranges(
    plans: Sequence[ScoredPlan], *, accuracy_exponent: float = ACCURACY_EXPONENT
) -> tuple[WinningRange, ...]:
    """Return the winner for each weight of the costs, from weight 0 on.

    Plans that tie over a whole range are represented by the first plan.

    Args:
        plans: plans to compare, at least one.
        accuracy_exponent: exponent of the accuracy, alpha; 0 compares the costs alone.

    Raises:
        UsageError: a number is not positive, the exponent is negative, or the plans have different
            numbers of costs.
    """
    lines = [_score_line(plan, accuracy_exponent) for plan in plans]
    if len({len(plan.costs) for plan in plans}) > 1:
        raise UsageError("plans of one comparison need the same costs")
    # At weight 0 the highest line wins, and of equal ones that which falls least.
    order = range(len(plans))
    current = min(order, key=lambda i: (-lines[i][0], lines[i][1], i))
    ranges, low = list[WinningRange](), 0.0
    while True:
        height, slope = lines[current]
        flatter = [i for i in order if lines[i][1] < slope]
        crossings = {i: (height - lines[i][0]) / (slope - lines[i][1]) for i in flatter}
        if not crossings:
            return (*ranges, WinningRange(name=plans[current].name, low=low, high=None))
        at = min(crossings.values())
        # Of several lines through one point the flattest wins beyond it.
        following = min((i for i in flatter if crossings[i] <= at), key=lambda i: lines[i][1])
        if at > low:
            ranges.append(WinningRange(name=plans[current].name, low=low, high=at))
        current, low = following, max(low, at)


def _score_line(plan: ScoredPlan, accuracy_exponent: float) -> tuple[float, float]:
    """Return the height of a plan's line at weight 0, and how steeply it falls."""
    if not (math.isfinite(accuracy_exponent) and accuracy_exponent >= 0):
        raise UsageError(
            f"the exponent of the accuracy must be 0 or more, got {accuracy_exponent!r}"
        )
    for value in (plan.accuracy_percent, *plan.costs):
        if not (math.isfinite(value) and value > 0):
            raise UsageError(f"scores need positive numbers, got {value!r} of {plan.name}")
    fall = sum(math.log10(cost) for cost in plan.costs)
    return accuracy_exponent * math.log10(plan.accuracy_percent), fall
