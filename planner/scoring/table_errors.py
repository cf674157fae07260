"""The error of accuracies that are derived from published ones, measured by leaving results out.

    difference_error   error of the difference of two methods, when a whole table is left out
    nearest_match      the closest kind of tables that there is for a backbone
    interval_of        the interval of an accuracy with an error in log-odds

A table that is left out is predicted from the nearest tables that remain: those of its family of
backbones and amount of images, else those of its family, else all. Each pair of methods that both
sides have gives one error. There are few tables, so an error is a root mean square over all of
them, and the number of pairs is part of the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from statistics import NormalDist
from typing import Any, Literal

from planner.scoring.published_tables import effects_of, from_log_odds, log_odds, priors

Match = Literal["family and images", "family", "any table"]
"""What two tables share: family of backbones and amount of images, the family alone, or nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOutError:
    """Root mean square error in log-odds.

    Attributes:
        deviation: root mean square of the errors.
        cases: number of errors; several of one table are not independent.
    """

    deviation: float
    cases: int


@lru_cache(maxsize=4)
def difference_error(match: Match = "family and images") -> LeftOutError:
    """Return the error of the difference of two methods in a table that was left out.

    Args:
        match: tables that the difference is taken from. Where none of the closest kind remains,
            the left-out table is not counted.
    """
    errors: list[float] = []
    for table in priors()["tables"]:
        rest = [
            other
            for other in priors()["tables"]
            if other is not table and _is_of_kind(other, table, match)
        ]
        effects, cells = effects_of(rest), table["accuracy"]
        for first, second in combinations(sorted(effects.keys() & cells.keys()), 2):
            actual = log_odds(cells[first]) - log_odds(cells[second])
            errors.append(actual - (effects[first] - effects[second]))
    return _root_mean_square(errors)


def nearest_match(family: str | None, regime: str | None) -> Match:
    """Return the closest kind of tables that exists for a family and an amount of images."""
    wanted = {"family": family, "images": regime}
    for match in ("family and images", "family"):
        if any(_is_of_kind(table, wanted, match) for table in priors()["tables"]):
            return match
    return "any table"


def interval_of(value: float, error: float, *, coverage: float) -> tuple[float, float]:
    """Return the ends of the interval of an accuracy.

    Args:
        value: expected accuracy in log-odds.
        error: standard deviation in log-odds.
        coverage: probability that the interval holds the accuracy.
    """
    half = NormalDist().inv_cdf((1 + coverage) / 2) * error
    return from_log_odds(value - half), from_log_odds(value + half)


def _is_of_kind(table: dict[str, Any], wanted: dict[str, Any], match: Match) -> bool:
    if match == "any table":
        return True
    same_family = table["family"] == wanted["family"]
    return same_family and (match == "family" or wanted["images"] in (None, table["images"]))


def _root_mean_square(errors: Sequence[float]) -> LeftOutError:
    if not errors:
        return LeftOutError(deviation=math.nan, cases=0)
    return LeftOutError(
        deviation=math.sqrt(sum(error**2 for error in errors) / len(errors)), cases=len(errors)
    )
