"""Correct the roofline's times, and learn the power, from measured runs of one device.

The roofline (``profiler.timing.roofline``) gives an operation the longest of its arithmetic, its traffic
and its launch, at the data sheet's rates. Here each of the three gets a factor, one set for every
kind of backbone and precision that was measured:

    step seconds ~ sum over operations of max(a x arithmetic, t x traffic, l x launch)

so the result is again ``Rates``, which ``CostModel(roofline=...)`` takes. Factors are not held to 1
or more: caches serve traffic, and convolutions in fp32 may run on TF32 units.

Method: which of the three is longest is fixed by the factors so far, which leaves a non-negative
linear least-squares problem in relative errors; solve, and repeat until nothing moves (at most
``ROUNDS`` times). A weak pull towards 1 keeps a factor that the runs say nothing about at the data
sheet's value. Energy is ``joules = a + b x seconds`` by least squares in relative errors;
``Rates`` has room for a power only, so it gets that of the fit through the origin.

Errors are cross-validated by leaving out one backbone at a time: what to expect of a backbone that
was not measured. With a single backbone there is no such error, and it is None.

Nothing uses a calibration unless it is given one: factors of one device say nothing of another.

Cost: runs x operations x rounds x folds; a second or two for some hundred runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from planner.json_files import read_json, write_json
from profiler.errors import InputError, UsageError
from profiler.json_records import (
    NonNegativeInt,
    PositiveFloat,
    check_schema,
    json_object,
    read_record,
    warn_of_dropped,
)
from profiler.replay.event_log import OperationRecord, Phase
from profiler.timing.roofline import Rates
from profiler.workload import Workload

SCHEMA = "budgetplan.calibration/1"

SCHEMA_MINOR = 1
"""1 added ``schema_minor`` itself."""

ROUNDS = 20

PULL = 1e-5
"""Weight of factors being 1, against relative errors of the runs (whose mean weighs 1)."""

SMALLEST_FACTOR = 1e-2

FEWEST_RUNS = 4
"""Below this many runs of a kind and precision there is no fit: three factors need more."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One measured run.

    Attributes:
        backbone: its model; runs of one backbone are left out together.
        kind: what `kind_of` says of the backbone.
        precision: of the workload.
        work: [operations, 4] FLOPs, moved bytes, launches, times in one optimizer step.
        step_seconds: measured.
        energy_joules: measured, of one step; None where it was not.
    """

    backbone: str
    kind: str
    precision: str
    work: Floats
    step_seconds: float
    energy_joules: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeFit:
    """Factors of one kind of backbone at one precision.

    Attributes:
        kind: of backbone.
        precision: of the workload.
        arithmetic: factor on the time of arithmetic.
        traffic: factor on the time of memory traffic.
        launch: factor on the time of a launch.
        runs: how many were fitted.
        backbones: how many different ones.
        median_error: cross-validated, relative, absolute; None with a single backbone.
        largest_error: likewise.
        uncalibrated_median_error: of the data sheet's rates on the same runs.
    """

    kind: str
    precision: str
    arithmetic: PositiveFloat
    traffic: PositiveFloat
    launch: PositiveFloat
    runs: NonNegativeInt
    backbones: NonNegativeInt
    median_error: float | None
    largest_error: float | None
    uncalibrated_median_error: float

    def apply(self, base: Rates) -> Rates:
        """Return corrected rates."""
        return _scaled(base, np.array([self.arithmetic, self.traffic, self.launch]))


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyFit:
    """Joules of a step from its seconds.

    Attributes:
        fixed_joules: a of ``a + b x seconds``.
        watts: b.
        watts_through_origin: of the fit without a.
        runs: how many were fitted.
        backbones: how many different ones.
        median_error: of ``a + b x seconds``, cross-validated, relative, absolute; None with a
            single backbone.
        largest_error: likewise.
        median_error_through_origin: likewise, of the fit without a.
    """

    fixed_joules: float
    watts: float
    watts_through_origin: float
    runs: int
    backbones: int
    median_error: float | None
    largest_error: float | None
    median_error_through_origin: float | None

    def joules(self, seconds: float) -> float:
        """Return the energy of a step that takes so long."""
        return self.fixed_joules + self.watts * seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What measured runs taught about a device.

    Attributes:
        device: name in the device table.
        source: which runs, when, with which versions.
        base: the data sheet's rates, by precision: what the factors apply to.
        time: one fit for each kind and precision that had enough runs.
        energy: by precision.
    """

    device: str
    source: str
    base: Mapping[str, Rates]
    time: tuple[TimeFit, ...]
    energy: Mapping[str, EnergyFit]

    def __post_init__(self) -> None:
        for precision, rates in self.base.items():
            for rate in (rates.flops_per_second, rates.bytes_per_second):
                if not 0 < rate < float("inf"):
                    raise UsageError(f"rates for {precision} must be positive, got {rate!r}")
        for fit in self.time:
            if fit.precision not in self.base:
                raise UsageError(f"no rates for precision {fit.precision!r}")

    def rates(self, *, kind: str, precision: str) -> Rates | None:
        """Return calibrated rates; None for a kind and precision that was not measured."""
        for fit in self.time:
            if (fit.kind, fit.precision) == (kind, precision):
                energy = self.energy.get(precision)
                return replace(
                    fit.apply(self.base[precision]),
                    watts=None if energy is None else energy.watts_through_origin,
                    source=f"calibrated: {self.source}",
                )
        return None

    def save(self, path: Path | str) -> None:
        """Write the calibration as JSON.

        Raises:
            InputError: the file cannot be written.
        """
        write_json({"schema": SCHEMA, "schema_minor": SCHEMA_MINOR} | asdict(self), Path(path))

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read the file that ``save`` writes.

        Raises:
            InputError: the file cannot be read or is not a calibration. The message names the
                field.
        """
        data = json_object(read_json(Path(path), kind="calibration"), part="calibration")
        try:
            dropped = check_schema(data, SCHEMA, minor=SCHEMA_MINOR, part="calibration")
            content = {k: v for k, v in data.items() if k not in ("schema", "schema_minor")}
            calibration = read_record(cls, content, part="calibration", dropped=dropped)
        except InputError as error:
            raise InputError(
                f"{path} is not a calibration: {error}; make one with "
                "planner.cost.calibration.calibrate"
            ) from error
        warn_of_dropped(dropped, part=f"{path}: calibration")
        return calibration


# -- what is fitted --------------------------------------------------------------------------------


def work_of(operations: Iterable[OperationRecord], workload: Workload) -> Floats:
    """Return a replayed step as [operations, 4]; a replay shows at most two micro-batches.

    FLOPs, bytes moved, launches, and how often the step has it.
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


@cache
def kind_of(model: str) -> str:
    """Return what a backbone mostly computes: ``scan``, ``attention`` or ``convolution``.

    By the class names of its modules, so that it costs no forward.
    """
    from profiler.models import backbones

    image_size = backbones.native_image_size(model)
    built = backbones.build(model, num_classes=10, image_size=image_size, device="meta")
    names = [type(module).__name__ for module in built.modules()]
    if any("Mixer" in name and ("Vim" in name or "Mamba" in name) for name in names):
        return "scan"
    return "attention" if any("Attention" in name for name in names) else "convolution"


def seconds_of(work: Floats, rates: Rates) -> float:
    """Return the roofline time of a step."""
    return float(_shares(work, rates).sum())


def _shares(work: Floats, rates: Rates) -> Floats:
    """Return [3] seconds of the operations bound by arithmetic, by traffic and by launches."""
    times = rates.bounds(work[:, 0], work[:, 1], launches=work[:, 2])
    bound = times.argmax(axis=0)
    longest = times.max(axis=0) * work[:, 3]
    return np.bincount(bound, weights=longest, minlength=3).astype(np.float64)


def _scaled(base: Rates, factors: Floats) -> Rates:
    arithmetic, traffic, launch = (float(f) for f in factors)
    return replace(
        base,
        flops_per_second=base.flops_per_second / arithmetic,
        bytes_per_second=base.bytes_per_second / traffic,
        launch_seconds=base.launch_seconds * launch,
    )


# -- fitting ---------------------------------------------------------------------------------------


def calibrate(
    runs: Sequence[Run], *, device: str, base: Mapping[str, Rates], source: str
) -> Calibration:
    """Fit factors and power to measured runs.

    Args:
        runs: of one device.
        device: its name in the device table.
        base: the data sheet's rates by precision.
        source: which runs these are.

    Raises:
        UsageError: no kind and precision has `FEWEST_RUNS` runs.
    """
    groups: dict[tuple[str, str], list[Run]] = {}
    by_precision: dict[str, list[Run]] = {}
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
    return Calibration(device=device, source=source, base=dict(base), time=time, energy=energy)


def _fit_time(runs: Sequence[Run], base: Rates) -> TimeFit:
    factors = _factors(runs, base)
    errors = [
        abs(seconds_of(run.work, rates) / run.step_seconds - 1)
        for train, test in _folds(runs)
        for rates in [_scaled(base, _factors(train, base))]
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


def _factors(runs: Sequence[Run], base: Rates) -> Floats:
    """Return [3] factors on arithmetic, traffic and launches."""
    measured = np.array([run.step_seconds for run in runs])
    factors = np.ones(3)
    for _ in range(ROUNDS):
        rates = _scaled(base, factors)
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

    weight = np.sqrt(PULL * len(measured))
    rows = np.vstack([seconds / measured[:, None], weight * np.eye(3)])
    wanted = np.concatenate([np.ones(len(measured)), weight * np.ones(3)])
    model = LinearRegression(fit_intercept=False, positive=True).fit(rows, wanted)
    return np.asarray(model.coef_, dtype=np.float64)


def _fit_energy(runs: Sequence[Run]) -> EnergyFit:
    fixed, watts = _line(runs, intercept=True)
    errors: list[float] = []
    through_origin: list[float] = []
    for train, test in _folds(runs):
        a, b = _line(train, intercept=True)
        _, slope = _line(train, intercept=False)
        for run in test:
            assert run.energy_joules is not None
            errors.append(abs((a + b * run.step_seconds) / run.energy_joules - 1))
            through_origin.append(abs(slope * run.step_seconds / run.energy_joules - 1))
    return EnergyFit(
        fixed_joules=fixed,
        watts=watts,
        watts_through_origin=_line(runs, intercept=False)[1],
        runs=len(runs),
        backbones=len({run.backbone for run in runs}),
        median_error=_median(errors),
        largest_error=max(errors, default=None),
        median_error_through_origin=_median(through_origin),
    )


def _line(runs: Sequence[Run], *, intercept: bool) -> tuple[float, float]:
    """Return a and b of joules = a + b x seconds, by least squares in relative errors."""
    from sklearn.linear_model import LinearRegression

    seconds = np.array([[run.step_seconds] for run in runs])
    joules = np.array([run.energy_joules for run in runs], dtype=np.float64)
    model = LinearRegression(fit_intercept=intercept)
    model.fit(seconds, joules, sample_weight=joules**-2.0)
    return float(model.intercept_), float(model.coef_[0])


def _folds(runs: Sequence[Run]) -> list[tuple[list[Run], list[Run]]]:
    """Return (fitted, tested) runs, one backbone left out at a time; none for a single backbone."""
    from sklearn.model_selection import LeaveOneGroupOut

    names = [run.backbone for run in runs]
    if len(set(names)) < 2:
        return []
    split: Any = LeaveOneGroupOut().split(names, groups=names)
    return [([runs[i] for i in train], [runs[i] for i in test]) for train, test in split]


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None
