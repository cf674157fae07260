"""The fit of ``planner.training.short_runs.ShortRunModel`` to curves of accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from planner.training.short_runs import Curve, ShortRunModel, doublings_left


def clipped_log_odds(accuracy: float, images: int) -> float:
    """Return the log-odds of an accuracy, with half an image more on either side."""
    right = accuracy * images + 0.5
    return math.log(right / (images + 1 - right))


def fit_short_runs(cases: Sequence[Sequence[tuple[Curve, int, float]]]) -> ShortRunModel:
    """Fit the constants.

    Args:
        cases: for each case, (curve of short trainings, planned steps, log-odds after them) of each
            method. Every curve has two lengths at least.
    """
    rises, slopes, firsts, groups = [], [], [], []
    for number, case in enumerate(cases):
        for curve, planned, final in case:
            (first, before), (last, after) = ((s, curve[s]) for s in sorted(curve)[-2:])
            doublings = doublings_left(last, planned)
            rises.append((final - after) / doublings)
            slopes.append((after - before) / math.log2(last / first))
            firsts.append((final - before) / doublings_left(first, planned))
            groups.append((number, doublings))
    inputs = np.stack([np.ones(len(slopes)), slopes], axis=1)
    (gain, kept), *_ = np.linalg.lstsq(inputs, np.array(rises), rcond=None)
    # An error per doubling times the root of the doublings is an error per root of a doubling.
    roots = np.sqrt([doublings for _, doublings in groups])
    errors = (np.array(rises) - inputs @ [gain, kept]) * roots
    number_of = np.array([number for number, _ in groups])
    means = {n: errors[number_of == n].mean() for n in set(number_of)}
    own = errors - np.array([means[n] for n in number_of])
    freedom = max(1, len(errors) - len(means))
    own_variance = float((own**2).sum() / freedom)
    total_variance = float((errors**2).mean())
    return ShortRunModel(
        first_gain=round(float(np.mean(firsts)), 3),
        gain=round(float(gain), 3),
        kept=round(float(kept), 3),
        own_deviation=round(math.sqrt(own_variance), 3),
        common_deviation=round(math.sqrt(max(0.0, total_variance - own_variance)), 3),
        curves=len(errors),
    )
