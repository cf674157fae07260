"""Calibration of a device's roofline: correction factors for its times, and its power.

The roofline (``profiler.timing.roofline``) takes the longest of an operation's arithmetic, memory
traffic and launch, at the data sheet's rates. A calibration multiplies each of the three by a
factor; every kind of backbone has its own set of factors at each precision:

    step seconds = sum over operations of max(a * arithmetic, t * traffic, l * launch)

The result is a ``Rates`` record, which ``CostModel(roofline=...)`` accepts. A factor may be below
1: caches serve a part of the traffic, and fp32 convolutions may run on TF32 units.

``calibration_fit`` fits the factors. This module holds the records and their file.

Limitation: the factors of a device do not transfer to other devices. A calibration is used only
where it is passed explicitly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from planner.disk.json_files import read_json, write_json
from profiler.arrays import Floats
from profiler.errors import InputError, UsageError
from profiler.json_records import (
    NonNegativeInt,
    PositiveFloat,
    check_schema,
    json_object,
    read_record,
    warn_of_dropped,
)
from profiler.records import Origin
from profiler.timing.roofline import Rates

CALIBRATION_SCHEMA = "budgetplan.calibration/1"

CALIBRATION_SCHEMA_MINOR = 3
"""1 added ``schema_minor`` itself; 2 origin and spread of rates; 3 power limit, factors and
slowness of the optimizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeFit:
    """Time factors for a kind of backbone at a precision.

    Attributes:
        kind: kind of backbone.
        precision: precision of the workload.
        arithmetic: factor on the time of arithmetic.
        traffic: factor on the time of memory traffic.
        launch: factor on the time of a launch.
        runs: number of fitted runs.
        backbones: number of different backbones among them.
        median_error: median of absolute relative errors, cross-validated; None with a single
            backbone.
        largest_error: largest of the same errors.
        uncalibrated_median_error: median absolute relative error of the data sheet's rates.
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
        """Return the rates with all three factors applied."""
        return scaled_rates(base, np.array([self.arithmetic, self.traffic, self.launch]))


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyFit:
    """Joules of a step from its seconds.

    Attributes:
        fixed_joules: a of ``joules = a + b * seconds``.
        watts: b of the same line.
        watts_through_origin: slope of the fit without a.
        runs: number of fitted runs.
        backbones: number of different backbones among them.
        median_error: median absolute relative error of the line, cross-validated; None with a
            single backbone.
        largest_error: largest of the same errors.
        median_error_through_origin: median error of the fit without a.
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
        """Return the energy of a step that takes so many seconds."""
        return self.fixed_joules + self.watts * seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Fits of time and energy to the measured runs of a device.

    Attributes:
        device: name in the device table.
        source: description of the runs, with date and versions.
        base: the data sheet's rates that the factors apply to, by precision.
        time: one fit for each kind of backbone and precision with enough runs.
        energy: energy fits by precision.
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
                    origin=Origin.FITTED,
                    power_origin=Origin.FITTED if energy else Origin.DATA_SHEET,
                )
        return None

    def save(self, path: Path | str) -> None:
        """Write the calibration as JSON.

        Raises:
            InputError: the file cannot be written.
        """
        write_json(
            {"schema": CALIBRATION_SCHEMA, "schema_minor": CALIBRATION_SCHEMA_MINOR} | asdict(self),
            Path(path),
        )

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read the file that ``save`` writes.

        Raises:
            InputError: the file cannot be read or is not a calibration. The message names the
                field.
        """
        data = json_object(read_json(Path(path), kind="calibration"), part="calibration")
        try:
            dropped = check_schema(
                data, CALIBRATION_SCHEMA, minor=CALIBRATION_SCHEMA_MINOR, part="calibration"
            )
            content = {k: v for k, v in data.items() if k not in ("schema", "schema_minor")}
            calibration = read_record(cls, content, part="calibration", dropped=dropped)
        except InputError as error:
            raise InputError(
                f"{path} is not a calibration: {error}; make one with studies/gpu_grid/compare.py"
            ) from error
        warn_of_dropped(dropped, part=f"{path}: calibration")
        return calibration


def scaled_rates(base: Rates, factors: Floats) -> Rates:
    """Return rates with [3] factors on the times of arithmetic, traffic and launches."""
    arithmetic, traffic, launch = (float(f) for f in factors)
    return replace(
        base,
        flops_per_second=base.flops_per_second / arithmetic,
        bytes_per_second=base.bytes_per_second / traffic,
        launch_seconds=base.launch_seconds * launch,
    )
