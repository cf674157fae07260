"""Fits a calibration to measured runs: factors by least squares, power by a line.

For given factors it is known which of the three terms of the roofline is the longest in each
operation. With that fixed, the sum is linear in the factors, and a non-negative least-squares
problem in relative errors gives new factors. This is repeated until the factors settle, at most
``ROUNDS`` times. A weak regularisation towards 1 keeps a factor at the data sheet's value if no run
depends on it. Energy is fitted as ``joules = a + b * seconds``, by least squares in relative
errors. ``Rates`` holds a power alone, which is the slope of a second fit through the origin.

Errors are cross-validated by leaving out one backbone at a time, so they estimate the error for a
backbone that was not measured. With a single backbone they are None.

Cost: runs * operations * rounds * folds; one to two seconds for some hundred runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from calibration import Calibration, EnergyFit, TimeFit, scaled_rates

from profiler.arrays import Floats
from profiler.errors import UsageError
from profiler.replay.event_log import OperationRecord, Phase
from profiler.timing.roofline import Rates
from profiler.workload import Workload

ROUNDS = 20
"""Largest number of least-squares problems solved for a set of factors."""

REGULARIZATION = 1e-5
"""Weight of a factor's distance from 1, relative to the mean squared error of the runs."""

SMALLEST_FACTOR = 1e-2
"""Lower limit of a factor: at zero, its term could never be the longest again."""

FEWEST_RUNS = 4
"""Smallest number of runs that three factors are fitted to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRun:
    """A measured run with the work of its replayed step.

    Attributes:
        backbone: model name; in cross-validation all runs of a backbone are left out together.
        kind: kind of backbone, from `backbone_kind`.
        precision: precision of the workload.
        work: [operations, 4] FLOPs, moved bytes, launches and repetitions in an optimizer step.
        step_seconds: measured time of an optimizer step.
        energy_joules: measured energy of an optimizer step; None if not measured.
    """

    backbone: str
    kind: str
    precision: str
    work: Floats
    step_seconds: float
    energy_joules: float | None = None


def work_of(operations: Iterable[OperationRecord], workload: Workload) -> Floats:
    """Return FLOPs, moved bytes, launches and repetitions [operations, 4] of a replayed step.

    A replay has at most two micro-batches. The repetitions scale their operations to all
    micro-batches of the step.
    """
    shown = min(workload.accumulation, 2)
    rows = [
        (
            op.flops,
            op.moved_bytes,
            op.launches,
            1.0 if op.phase == Phase.OPTIMIZER else workload.accumulation / shown,
        )
        for op in operations
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def seconds_of(work: Floats, rates: Rates) -> float:
    """Return the roofline time of a step."""
    return float(_shares(work, rates).sum())


def _shares(work: Floats, rates: Rates) -> Floats:
    """Return [3] seconds of the operations bound by arithmetic, by traffic and by launches."""
    times = rates.bounds(work[:, 0], work[:, 1], launches=work[:, 2])
    bound = times.argmax(axis=0)
    longest = times.max(axis=0) * work[:, 3]
    return np.bincount(bound, weights=longest, minlength=3).astype(np.float64)


def fit_calibration(
    runs: Sequence[CalibrationRun], *, device: str, base: Mapping[str, Rates], source: str
) -> Calibration:
    """Fit factors and power to measured runs.

    Args:
        runs: measured runs, all on the same device.
        device: name of the device in the device table.
        base: the data sheet's rates by precision.
        source: description of the runs.

    Raises:
        UsageError: there are less than `FEWEST_RUNS` runs for every kind and precision.
    """
    groups: dict[tuple[str, str], list[CalibrationRun]] = {}
    by_precision: dict[str, list[CalibrationRun]] = {}
    for run in runs:
        groups.setdefault((run.kind, run.precision), []).append(run)
        if run.energy_joules is not None:
            by_precision.setdefault(run.precision, []).append(run)
    time = tuple(
        _fit_time(members, base[precision])
        for (_, precision), members in sorted(groups.items())
        if len(members) >= FEWEST_RUNS and precision in base
    )
    if not time:
        raise UsageError(
            f"a calibration needs {FEWEST_RUNS} runs of one kind and precision, got {len(runs)}"
            " runs in all; measure more"
        )
    energy = {
        precision: _fit_energy(members)
        for precision, members in sorted(by_precision.items())
        if len(members) >= FEWEST_RUNS
    }
    plain = {
        precision: replace(rates, kernels=None, power=None, spread=None, power_spread=None)
        for precision, rates in base.items()
    }
    return Calibration(device=device, source=source, base=plain, time=time, energy=energy)


def _fit_time(runs: Sequence[CalibrationRun], base: Rates) -> TimeFit:
    factors = _factors(runs, base)
    errors = [
        abs(seconds_of(run.work, rates) / run.step_seconds - 1)
        for train, test in _folds(runs)
        for rates in [scaled_rates(base, _factors(train, base))]
        for run in test
    ]
    uncalibrated = [abs(seconds_of(run.work, base) / run.step_seconds - 1) for run in runs]
    return TimeFit(
        kind=runs[0].kind,
        precision=runs[0].precision,
        arithmetic=float(factors[0]),
        traffic=float(factors[1]),
        launch=float(factors[2]),
        runs=len(runs),
        backbones=len({run.backbone for run in runs}),
        median_error=_median(errors),
        largest_error=max(errors, default=None),
        uncalibrated_median_error=float(np.median(uncalibrated)),
    )


def _factors(runs: Sequence[CalibrationRun], base: Rates) -> Floats:
    """Return [3] factors on arithmetic, traffic and launches."""
    measured = np.array([run.step_seconds for run in runs])
    factors = np.ones(3)
    for _ in range(ROUNDS):
        rates = scaled_rates(base, factors)
        shares = np.stack([_shares(run.work, rates) for run in runs])
        changed = np.maximum(_least_squares(shares / factors, measured), SMALLEST_FACTOR)
        settled = bool(np.allclose(changed, factors, rtol=1e-4))
        factors = changed
        if settled:
            break
    return factors


def _least_squares(seconds: Floats, measured: Floats) -> Floats:
    """Solve for non-negative factors, seconds [runs, 3], in relative errors, pulled to 1."""
    from sklearn.linear_model import LinearRegression

    weight = np.sqrt(REGULARIZATION * len(measured))
    rows = np.vstack([seconds / measured[:, None], weight * np.eye(3)])
    wanted = np.concatenate([np.ones(len(measured)), weight * np.ones(3)])
    model = LinearRegression(fit_intercept=False, positive=True).fit(rows, wanted)
    return np.asarray(model.coef_, dtype=np.float64)


def _fit_energy(runs: Sequence[CalibrationRun]) -> EnergyFit:
    fixed, watts = _fit_line(runs, intercept=True)
    errors: list[float] = []
    through_origin: list[float] = []
    for train, test in _folds(runs):
        a, b = _fit_line(train, intercept=True)
        _, slope = _fit_line(train, intercept=False)
        for run in test:
            assert run.energy_joules is not None
            errors.append(abs((a + b * run.step_seconds) / run.energy_joules - 1))
            through_origin.append(abs(slope * run.step_seconds / run.energy_joules - 1))
    return EnergyFit(
        fixed_joules=fixed,
        watts=watts,
        watts_through_origin=_fit_line(runs, intercept=False)[1],
        runs=len(runs),
        backbones=len({run.backbone for run in runs}),
        median_error=_median(errors),
        largest_error=max(errors, default=None),
        median_error_through_origin=_median(through_origin),
    )


def _fit_line(runs: Sequence[CalibrationRun], *, intercept: bool) -> tuple[float, float]:
    """Return a and b of joules = a + b x seconds, by least squares in relative errors."""
    from sklearn.linear_model import LinearRegression

    seconds = np.array([[run.step_seconds] for run in runs])
    joules = np.array([run.energy_joules for run in runs], dtype=np.float64)
    model = LinearRegression(fit_intercept=intercept)
    model.fit(seconds, joules, sample_weight=joules**-2.0)
    return float(model.intercept_), float(model.coef_[0])


def _folds(
    runs: Sequence[CalibrationRun],
) -> list[tuple[list[CalibrationRun], list[CalibrationRun]]]:
    """Return (fitted, tested) runs, one backbone left out at a time; none for a single backbone."""
    from sklearn.model_selection import LeaveOneGroupOut

    names = [run.backbone for run in runs]
    if len(set(names)) < 2:
        return []
    split: Any = LeaveOneGroupOut().split(names, groups=names)
    return [([runs[i] for i in train], [runs[i] for i in test]) for train, test in split]


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None
