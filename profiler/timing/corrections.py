"""Corrections of predicted seconds from real runs of the same machine.

The load of a step (``profiler.timing.step_load``) has three parts: matrix products, other work, and
launches. Two corrections are tried on the runs of a machine:

    one factor      on all three, the median of measured over predicted seconds
    three factors   one for each part, by least squares in relative errors, drawn to the one factor

Each is cross-validated by leaving out one backbone at a time. The better one is used if it lowers
the median error of backbones that it did not see by at least ``LEAST_IMPROVEMENT``. The
interval of corrected seconds is that of the left-out ratios.

Cost: backbones x a few 3 x 3 systems.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from profiler.arrays import Floats
from profiler.records import Spread
from profiler.timing.step_load import PRODUCTS, SECONDS, WAITING

FEWEST_BACKBONES = 3
"""Smallest number of backbones in the runs of a correction."""

FEWEST_CORRECTED_RUNS = 6

LEAST_IMPROVEMENT = 0.01
"""Smallest reduction of the median error for which a correction is used."""

_PULL = 0.3
"""Weight of the distance from one factor for all parts, in relative errors of a run."""

_ROUNDS, _OUTLIER = 8, 0.1

_COVERAGE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRun:
    """A run with its predicted load.

    Attributes:
        backbone: model name; all runs of a backbone are left out together.
        load: [LOAD_SUMS] predicted load of the step, uncorrected.
        host_seconds: predicted seconds of the host.
        seconds: measured seconds.
    """

    backbone: str
    load: Floats
    host_seconds: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """Factors on predicted seconds, in the arrays that ``Store`` keeps.

    Attributes:
        factors: [4] factors on products, other work, launches, and the host's seconds.
        errors: [2] median error of left-out backbones before and after.
        spread: [2] 5th and 95th percentile of measured over corrected seconds, left out.
        counts: [2] runs and backbones.
    """

    factors: Floats
    errors: Floats
    spread: Floats
    counts: Floats

    @property
    def helps(self) -> bool:
        """Whether cross-validation says that the correction lowers the error."""
        return bool(self.errors[1] <= self.errors[0] - LEAST_IMPROVEMENT)

    @property
    def interval(self) -> Spread:
        """Ratios of measured to corrected seconds of left-out backbones."""
        return Spread(low=float(self.spread[0]), high=float(self.spread[1]), coverage=_COVERAGE)


def corrected_loads(loads: Floats, factors: Floats) -> Floats:
    """Return [..., LOAD_SUMS] loads whose parts are multiplied by [4] factors."""
    products, other, waiting = (
        part * factor for part, factor in zip(_parts(loads), factors[:3], strict=True)
    )
    found = loads.copy()
    found[..., SECONDS] = products + other + waiting
    found[..., PRODUCTS], found[..., WAITING] = products, waiting
    return found


def _parts(loads: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the seconds of products, other work and launches."""
    products, waiting = loads[..., PRODUCTS], loads[..., WAITING]
    return products, loads[..., SECONDS] - products - waiting, waiting


def fit_correction(runs: Sequence[LoadedRun]) -> Correction | None:
    """Return the better of the two corrections; None with too few runs or backbones."""
    backbones = sorted({run.backbone for run in runs})
    if len(runs) < FEWEST_CORRECTED_RUNS or len(backbones) < FEWEST_BACKBONES:
        return None
    plain = _ratios(runs, np.ones(4))
    tried = [(fit, _left_out_ratios(runs, backbones, fit)) for fit in (_one_factor, _three_factors)]
    fit, ratios = min(tried, key=lambda pair: _median_error(pair[1]))
    low, high = np.quantile(ratios, (0.05, 0.95))
    return Correction(
        factors=fit(runs),
        errors=np.array([_median_error(plain), _median_error(ratios)]),
        spread=np.array([min(low, 1.0), max(high, 1.0)]),
        counts=np.array([len(runs), len(backbones)], dtype=np.float64),
    )


def _left_out_ratios(
    runs: Sequence[LoadedRun],
    backbones: Sequence[str],
    fit: Callable[[Sequence[LoadedRun]], Floats],
) -> Floats:
    """Return measured over corrected seconds of each run, fitted without its backbone."""
    found = np.zeros(len(runs))
    for backbone in backbones:
        out = np.array([run.backbone == backbone for run in runs])
        factors = fit([run for run, is_out in zip(runs, out, strict=True) if not is_out])
        found[out] = _ratios([run for run in runs if run.backbone == backbone], factors)
    return found


def _ratios(runs: Sequence[LoadedRun], factors: Floats) -> Floats:
    """Return [runs] measured over corrected seconds."""
    loads = corrected_loads(np.array([run.load for run in runs]), factors)
    host = np.array([run.host_seconds for run in runs]) * factors[3]
    measured = np.array([run.seconds for run in runs], dtype=np.float64)
    ratios: Floats = measured / np.maximum(loads[:, SECONDS], host)
    return ratios


def _median_error(ratios: Floats) -> float:
    return float(np.median(np.abs(1.0 / ratios - 1.0)))


def _one_factor(runs: Sequence[LoadedRun]) -> Floats:
    return np.full(4, float(np.median(_ratios(runs, np.ones(4)))))


def _three_factors(runs: Sequence[LoadedRun]) -> Floats:
    """Return [4] factors; runs that the host decides say nothing about the first three."""
    start = _one_factor(runs)
    seconds = np.array([run.seconds for run in runs])
    parts = np.stack(_parts(np.array([run.load for run in runs])), axis=1) * start[:3]
    is_host = np.array([run.host_seconds > run.load[SECONDS] for run in runs])
    rows, wanted = (parts / seconds[:, None])[~is_host], np.ones(int((~is_host).sum()))
    if not len(rows):
        return start
    factors, weight = np.ones(3), np.ones(len(rows))
    pull = _PULL * np.eye(3)
    for _ in range(_ROUNDS):
        weighted = np.vstack([rows * weight[:, None], pull])
        factors = np.linalg.lstsq(weighted, np.r_[wanted * weight, pull.sum(axis=1)], rcond=None)[0]
        factors = np.clip(factors, 0.2, 5.0)
        errors = np.abs(rows @ factors - 1.0)
        weight = np.sqrt(_OUTLIER / np.maximum(errors, _OUTLIER))
    found: Floats = np.append(start[:3] * factors, start[3])
    return found
