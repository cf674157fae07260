"""The fit of ``planner.training.short_runs.ShortRunModel`` to curves of accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.training.short_runs import Curve, ShortRunModel, doublings_left

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from planner.methods.kinds import MethodKind

PULL = 2.0
"""Curves with the common gain that each kind of methods is fitted with beside its own: an
assumption, so that a kind of few curves stays near the common gain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodCurve:
    """Short trainings of a method, and the whole one.

    Attributes:
        kind: kind of the method; None if it is not known.
        short: log-odds after two short trainings or more.
        planned_steps: steps of the whole training.
        final: log-odds after it.
    """

    kind: MethodKind | None
    short: Curve
    planned_steps: int
    final: float


Case = Sequence[MethodCurve]
"""Curves of the methods on one set with one net and one seed."""


def clipped_log_odds(accuracy: float, images: int) -> float:
    """Return the log-odds of an accuracy, with half an image more on either side."""
    right = accuracy * images + 0.5
    return math.log(right / (images + 1 - right))


def cautious_fit(cases_by_net: Mapping[str, Sequence[Case]]) -> ShortRunModel:
    """Fit the constants to all nets, with the largest of the own errors of the nets alone.

    A few kinds of nets say little about another.
    """
    every = fit_short_runs([case for cases in cases_by_net.values() for case in cases])
    fits = [every, *map(fit_short_runs, cases_by_net.values())]
    return replace(
        every,
        own_deviation=max(fit.own_deviation for fit in fits),
        first_own_deviation=max(fit.first_own_deviation for fit in fits),
    )


def fit_short_runs(cases: Sequence[Case]) -> ShortRunModel:
    """Fit the constants by least squares, with the gains of the kinds drawn towards the common one.

    Args:
        cases: curves of the methods of each case.
    """
    curves = [(number, each) for number, case in enumerate(cases) for each in case]
    slopes, rises, firsts, roots, first_roots = [], [], [], [], []
    for _, each in curves:
        first, last = sorted(each.short)[-2:]
        doublings = doublings_left(last, each.planned_steps)
        every = doublings_left(first, each.planned_steps)
        slopes.append((each.short[last] - each.short[first]) / math.log2(last / first))
        rises.append((each.final - each.short[last]) / doublings)
        firsts.append((each.final - each.short[first]) / every)
        roots.append(math.sqrt(doublings))
        first_roots.append(math.sqrt(every))
    kinds = sorted({each.kind for _, each in curves if each.kind is not None})
    is_of = np.array([[each.kind == kind for kind in kinds] for _, each in curves], dtype=float)
    ones = np.ones((len(curves), 1))
    first_inputs = np.hstack([ones, is_of])
    inputs = np.hstack([ones, np.array(slopes)[:, None], is_of])
    gain, kept, *more = _drawn_to_zero(inputs, np.array(rises), free=2)
    first_gain, *first_more = _drawn_to_zero(first_inputs, np.array(firsts), free=1)
    # An error per doubling times the root of the doublings is an error per root of a doubling.
    numbers = np.array([number for number, _ in curves])
    errors = (np.array(rises) - inputs @ [gain, kept, *more]) * np.array(roots)
    own, common = _deviations(errors, numbers, fitted=len(kinds))
    errors = (np.array(firsts) - first_inputs @ [first_gain, *first_more]) * np.array(first_roots)
    first_own, first_common = _deviations(errors, numbers, fitted=len(kinds))
    return ShortRunModel(
        first_gain=round(float(first_gain), 3),
        gain=round(float(gain), 3),
        kept=round(float(kept), 3),
        own_deviation=own,
        common_deviation=common,
        first_own_deviation=first_own,
        first_common_deviation=first_common,
        curves=len(errors),
        more={k: round(float(v), 3) for k, v in zip(kinds, more, strict=True)},
        first_more={k: round(float(v), 3) for k, v in zip(kinds, first_more, strict=True)},
    )


def _deviations(
    errors: NDArray[np.float64], numbers: NDArray[np.int_], *, fitted: int
) -> tuple[float, float]:
    """Return the standard deviations of own errors and of those that the curves of a case share.

    Args:
        errors: error of each curve.
        numbers: number of the case of each curve.
        fitted: number of fitted kinds, which are degrees of freedom less.
    """
    means = {n: errors[numbers == n].mean() for n in set(numbers)}
    own = errors - np.array([means[n] for n in numbers])
    own_variance = float((own**2).sum() / max(1, len(errors) - len(means) - fitted))
    common_variance = max(0.0, float((errors**2).mean()) - own_variance)
    return round(math.sqrt(own_variance), 3), round(math.sqrt(common_variance), 3)


def _drawn_to_zero(
    inputs: NDArray[np.float64], targets: NDArray[np.float64], *, free: int
) -> NDArray[np.float64]:
    """Return least-squares coefficients [inputs]; all after the free ones are drawn to zero."""
    columns = inputs.shape[1]
    pulls = np.zeros((columns, columns))
    pulls[range(free, columns), range(free, columns)] = math.sqrt(PULL)
    found, *_ = np.linalg.lstsq(
        np.vstack([inputs, pulls]), np.append(targets, np.zeros(columns)), rcond=None
    )
    return np.asarray(found)
