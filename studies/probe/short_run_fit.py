"""The fit of ``planner.training.short_runs.ShortRunModel`` to curves of accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.training.short_runs import Gains, ShortRunModel, doublings_left

if TYPE_CHECKING:
    from numpy.typing import NDArray

PULL = 2.0
"""Curves with the common value that each kind of methods is fitted with beside its own: an
assumption, so that a kind of few curves stays near the common value."""


DECAYS = tuple(step / 20 for step in range(6, 21))
"""Decays that are tried."""

_NO_GAINS = Gains(gain=0.0, more={}, own_deviation=0.0, common_deviation=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodCurve:
    """Short trainings of a method, and the whole one.

    Attributes:
        kind: kind of the method; None if it is not known.
        short: log-odds after two short trainings or more, by steps.
        planned_steps: steps of the whole training.
        final: log-odds after it.
    """

    kind: str | None
    short: Mapping[int, float]
    planned_steps: int
    final: float


Curves = Sequence[MethodCurve]
"""Curves of the methods on one set with one net and one seed."""


def clipped_log_odds(accuracy: float, images: int) -> float:
    """Return the log-odds of an accuracy, with half an image more on either side."""
    right = accuracy * images + 0.5
    return math.log(right / (images + 1 - right))


def cautious_fit(cases_by_net: Mapping[str, Sequence[Curves]]) -> ShortRunModel:
    """Fit the constants to all nets, with the deviations of nets that were left out of the fit.

    A few kinds of nets say little about another. With a single net its own deviations are taken.
    """
    every = fit_short_runs([case for cases in cases_by_net.values() for case in cases])
    if len(cases_by_net) < 2:
        return replace(every, nets=1)
    errors: dict[str, list[NDArray[np.float64]]] = {"first": [], "later": [], "effects": []}
    for net, cases in cases_by_net.items():
        rest = [case for other, those in cases_by_net.items() if other != net for case in those]
        fitted = fit_short_runs(rest)
        errors["first"] += [gain_errors(case, fitted.first, at=0) for case in cases]
        errors["later"] += [gain_errors(case, fitted.later, at=-1) for case in cases]
        errors["effects"] += [effect_errors(case, fitted.effects) for case in cases]
    return replace(
        every,
        first=_with_deviations(every.first, errors["first"]),
        later=_with_deviations(every.later, errors["later"]),
        effect_deviation=_own_deviation(errors["effects"]),
        nets=len(cases_by_net),
    )


def fit_short_runs(cases: Sequence[Curves]) -> ShortRunModel:
    """Fit the constants by least squares, with those of the kinds drawn towards the common one.

    Args:
        cases: curves of the methods of each case.
    """
    decay = _fit_decay(cases)
    first, later = (_fit_gains(cases, at=at, decay=decay) for at in (0, -1))
    effects = _fit_effects(cases)
    return ShortRunModel(
        first=first,
        later=later,
        effects=effects,
        effect_deviation=_own_deviation([effect_errors(case, effects) for case in cases]),
        curves=sum(map(len, cases)),
    )


def gain_errors(case: Curves, gains: Gains, *, at: int) -> NDArray[np.float64]:
    """Return the errors [methods] of carrying on, per root of a doubling.

    Args:
        case: curves of the methods.
        gains: fitted gains.
        at: index of the short training that is carried on, in the order of their steps.
    """
    errors = []
    unusual = 0.0 if at == 0 else unusual_rise(case, gains)
    for each in case:
        steps = sorted(each.short)[at]
        doublings = doublings_left(steps, each.planned_steps)
        rise = each.final - each.short[steps]
        expected = gains.rise(doublings, each.kind, unusual=unusual)
        errors.append((rise - expected) / math.sqrt(doublings))
    return np.array(errors)


def unusual_rise(case: Curves, gains: Gains) -> float:
    """Return the unusual rise of the methods of a case from its first short length to its last."""
    first, last = min(case[0].short), max(case[0].short)
    risen = [(each.kind, each.short[last] - each.short[first]) for each in case]
    return gains.unusual_rise(risen, doublings_left(first, last))


def effect_errors(case: Curves, effects: Mapping[str, float]) -> NDArray[np.float64]:
    """Return the errors [methods] of the effects of the kinds, beside the mean of the case."""
    return np.array([each.final - effects.get(each.kind or "", 0.0) for each in case])


def _with_deviations(gains: Gains, errors: Sequence[NDArray[np.float64]]) -> Gains:
    """Return gains with the deviations of errors, one array for each case."""
    means = np.array([each.mean() for each in errors])
    own = _own_deviation(errors)
    # The mean of a case has a part of the own errors.
    inside = own**2 / np.mean([len(each) for each in errors])
    common = math.sqrt(max(0.0, float((means**2).mean()) - float(inside)))
    return replace(gains, own_deviation=own, common_deviation=round(common, 3))


def _own_deviation(errors: Sequence[NDArray[np.float64]]) -> float:
    """Return the standard deviation of errors around the mean of their case."""
    squares = sum(float(((each - each.mean()) ** 2).sum()) for each in errors)
    return round(math.sqrt(squares / max(1, sum(len(each) - 1 for each in errors))), 3)


def _fit_decay(cases: Sequence[Curves]) -> float:
    """Return the decay that fits the mean rises within each case best, out of ``DECAYS``."""
    means = []
    for case in cases:
        first, last = min(case[0].short), max(case[0].short)
        short = np.mean([each.short[last] - each.short[first] for each in case])
        whole = np.mean([each.final - each.short[first] for each in case])
        until = [doublings_left(first, steps) for steps in (last, case[0].planned_steps)]
        means.append((float(short), float(whole), *until))

    def error(decay: float) -> float:
        counted = replace(_NO_GAINS, decay=decay).counted
        errors = (
            whole - short * counted(to_whole) / counted(to_last)
            for short, whole, to_last, to_whole in means
        )
        return sum(each**2 for each in errors)

    return min(DECAYS, key=error)


def _fit_gains(cases: Sequence[Curves], *, at: int, decay: float) -> Gains:
    rises, kinds = [], []
    counted = replace(_NO_GAINS, decay=decay).counted
    for each in (each for case in cases for each in case):
        steps = sorted(each.short)[at]
        doublings = doublings_left(steps, each.planned_steps)
        rises.append((each.final - each.short[steps]) / counted(doublings))
        kinds.append(each.kind)
    names, is_of = _kinds(kinds)
    inputs = np.hstack([np.ones((len(rises), 1)), is_of])
    gain, *more = _drawn_to_zero(inputs, np.array(rises), free=1)
    fitted = Gains(
        gain=round(float(gain), 3),
        more={kind: round(float(v), 3) for kind, v in zip(names, more, strict=True)},
        own_deviation=0.0,
        common_deviation=0.0,
        decay=decay,
    )
    if at != 0:
        fitted = replace(fitted, carried=_fit_carried(cases, fitted))
    return _with_deviations(fitted, [gain_errors(case, fitted, at=at) for case in cases])


def _fit_carried(cases: Sequence[Curves], gains: Gains) -> float:
    """Return the share of an unusual rise that goes on, by least squares over the cases."""
    whole = replace(gains, carried=1.0)
    unusual = np.array([unusual_rise(case, whole) for case in cases])
    # Errors are per root of a doubling, and a rise counts as often as its doublings do.
    later, weights = [], []
    for case in cases:
        doublings = doublings_left(max(case[0].short), case[0].planned_steps)
        later.append(gain_errors(case, gains, at=-1).mean())
        weights.append(gains.counted(doublings) / math.sqrt(doublings))
    inputs = unusual * np.array(weights)
    squares = float(inputs @ inputs)
    share = float(inputs @ np.array(later)) / squares if squares else 0.0
    return round(min(1.0, max(0.0, share)), 3)


def _fit_effects(cases: Sequence[Curves]) -> dict[str, float]:
    """Return the effects of the kinds beside a mean of each case."""
    curves = [(number, each) for number, case in enumerate(cases) for each in case]
    names, is_of = _kinds([each.kind for _, each in curves])
    numbers = np.array([number for number, _ in curves])
    is_case = (numbers[:, None] == np.arange(len(cases))).astype(float)
    finals = np.array([each.final for _, each in curves])
    found = _drawn_to_zero(np.hstack([is_case, is_of]), finals, free=len(cases))
    effects = found[len(cases) :]
    return {
        kind: round(float(value), 3)
        for kind, value in zip(names, effects - effects.mean(), strict=True)
    }


def _kinds(kinds: Sequence[str | None]) -> tuple[list[str], NDArray[np.float64]]:
    """Return the names of the kinds, and [curves, kinds] which curve is of which."""
    names = sorted({kind for kind in kinds if kind is not None})
    return names, np.array([[kind == name for name in names] for kind in kinds], dtype=float)


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
