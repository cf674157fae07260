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
    own = max(fit_short_runs(cases).own_deviation for cases in cases_by_net.values())
    return replace(every, own_deviation=max(own, every.own_deviation))


def fit_short_runs(cases: Sequence[Case]) -> ShortRunModel:
    """Fit the constants by least squares, with the gains of the kinds drawn towards the common one.

    Args:
        cases: curves of the methods of each case.
    """
    curves = [(number, each) for number, case in enumerate(cases) for each in case]
    slopes, rises, firsts, roots = [], [], [], []
    for _, each in curves:
        first, last = sorted(each.short)[-2:]
        doublings = doublings_left(last, each.planned_steps)
        slopes.append((each.short[last] - each.short[first]) / math.log2(last / first))
        rises.append((each.final - each.short[last]) / doublings)
        firsts.append((each.final - each.short[first]) / doublings_left(first, each.planned_steps))
        roots.append(math.sqrt(doublings))
    kinds = sorted({each.kind for _, each in curves if each.kind is not None})
    is_of = np.array([[each.kind == kind for kind in kinds] for _, each in curves], dtype=float)
    ones = np.ones((len(curves), 1))
    inputs = np.hstack([ones, np.array(slopes)[:, None], is_of])
    gain, kept, *more = _drawn_to_zero(inputs, np.array(rises), free=2)
    first_gain, *first_more = _drawn_to_zero(np.hstack([ones, is_of]), np.array(firsts), free=1)
    # An error per doubling times the root of the doublings is an error per root of a doubling.
    errors = (np.array(rises) - inputs @ [gain, kept, *more]) * np.array(roots)
    number_of = np.array([number for number, _ in curves])
    means = {n: errors[number_of == n].mean() for n in set(number_of)}
    own = errors - np.array([means[n] for n in number_of])
    freedom = max(1, len(errors) - len(means) - len(kinds))
    own_variance = float((own**2).sum() / freedom)
    total_variance = float((errors**2).mean())
    return ShortRunModel(
        first_gain=round(float(first_gain), 3),
        gain=round(float(gain), 3),
        kept=round(float(kept), 3),
        own_deviation=round(math.sqrt(own_variance), 3),
        common_deviation=round(math.sqrt(max(0.0, total_variance - own_variance)), 3),
        curves=len(errors),
        more={k: round(float(v), 3) for k, v in zip(kinds, more, strict=True)},
        first_more={k: round(float(v), 3) for k, v in zip(kinds, first_more, strict=True)},
    )


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
