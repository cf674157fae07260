"""The error of accuracies that are derived from published ones, measured by leaving results out.

    difference_error   error of the difference of two methods, when a whole table is left out
    interval_of        the interval of an accuracy with an error in log-odds

A table that is left out is predicted as a derived accuracy is: from the tables that remain of its
family of backbones and amount of images. A table without such tables is not counted: no
accuracy is derived from others. Each pair of methods that both sides have gives one error. There
are few tables, so an error is a root mean square over all of them, and the number of pairs is part
of the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from statistics import NormalDist

from planner.scoring.published_tables import (
    comparable_tables,
    effects_of,
    from_log_odds,
    log_odds,
    priors,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOutError:
    """Root mean square error in log-odds.

    Attributes:
        deviation: root mean square of the errors.
        cases: number of errors; several of one table are not independent.
    """

    deviation: float
    cases: int


@lru_cache(maxsize=1)
def difference_error() -> LeftOutError:
    """Return the error of the difference of two methods in a table that was left out."""
    errors: list[float] = []
    for table in priors()["tables"]:
        rest = [
            other
            for other in comparable_tables(table["family"], table["images"])
            if other is not table
        ]
        effects, cells = effects_of(rest), table["accuracy"]
        for first, second in combinations(sorted(effects.keys() & cells.keys()), 2):
            actual = log_odds(cells[first]) - log_odds(cells[second])
            errors.append(actual - (effects[first] - effects[second]))
    return _root_mean_square(errors)


def interval_of(value: float, error: float, *, coverage: float) -> tuple[float, float]:
    """Return the ends of the interval of an accuracy.

    Args:
        value: expected accuracy in log-odds.
        error: standard deviation in log-odds.
        coverage: probability that the interval holds the accuracy.
    """
    half = NormalDist().inv_cdf((1 + coverage) / 2) * error
    return from_log_odds(value - half), from_log_odds(value + half)


def _root_mean_square(errors: Sequence[float]) -> LeftOutError:
    if not errors:
        return LeftOutError(deviation=math.nan, cases=0)
    return LeftOutError(
        deviation=math.sqrt(sum(error**2 for error in errors) / len(errors)), cases=len(errors)
    )
