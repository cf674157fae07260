"""Calibration of this machine: short real steps, and a correction from all real runs so far.

1. Time the cells of ``profiler.timing.calibration_cells`` in interleaved rounds.
2. Keep the cells whose rounds agree (``profiler.timing.measured_runs``) and whose threads did not
   wait for a processor (``profiler.timing.processor_wait``).
3. Predict every kept run of this machine, those of other commands included.
4. Fit a correction, and store it; predictions use it if cross-validation says that it helps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from profiler.devices.table import DeviceSpec
from profiler.errors import BudgetplanError, DeviceError, MeasurementError
from profiler.running.sandbox import run_in_process
from profiler.timing.corrections import Correction, LoadedRun, fit_correction
from profiler.timing.measured_runs import (
    LARGEST_DISAGREEMENT,
    Machine,
    MeasuredRun,
    check_runs_file,
    disagreement,
    read_runs,
    record_run,
    this_machine,
)
from profiler.timing.processor_wait import LARGEST_WAIT

DEVICE_CALIBRATION_SCHEMA = "budgetplan.device_calibration/1"

MOST_FITTED = 100
"""Newest runs that are predicted and fitted; each costs a replay."""

OnCalibration = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedCell:
    """A cell that was timed now.

    Attributes:
        name: model, method, micro-batch and precision.
        seconds: median seconds of a step; None if it did not run.
        disagreement: relative difference of the rounds; None if it did not run.
        waited: share of its time that its threads waited for a processor.
        kept: whether the rounds agree and the threads did not wait.
        reason: why it did not run, or was not kept although its rounds agree; else empty.
    """

    name: str
    seconds: float | None
    disagreement: float | None
    waited: float
    kept: bool
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCalibration:
    """Result of a calibration.

    Attributes:
        machine: device, driver, processor and version of PyTorch that it holds for.
        clock: ``process`` or ``wall``; None if nothing was timed.
        cells: cells that were timed now.
        runs: loads and seconds of all real runs of this machine that were fitted.
        correction: fitted correction; None with too few runs.
    """

    machine: Machine
    clock: str | None
    cells: tuple[TimedCell, ...]
    runs: tuple[LoadedRun, ...]
    correction: Correction | None

    @property
    def is_used(self) -> bool:
        """Whether predictions use the correction from now on."""
        return self.correction is not None and self.correction.helps

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that ``calibrate --json`` prints."""
        found = self.correction
        parts = ("products", "other", "launches", "host")
        return {
            "schema": DEVICE_CALIBRATION_SCHEMA,
            "machine": asdict(self.machine),
            "clock": self.clock,
            "cells": [asdict(cell) for cell in self.cells],
            "runs": len(self.runs),
            "backbones": len({run.backbone for run in self.runs}),
            "is_used": self.is_used,
            "factors": None
            if found is None
            else dict(zip(parts, found.factors.tolist(), strict=True)),
            "median_error_before": None if found is None else float(found.errors[0]),
            "median_error_after": None if found is None else float(found.errors[1]),
            "interval": None if found is None else asdict(found.interval),
        }


def calibrate_device(
    device: DeviceSpec, *, with_cells: bool = True, on_progress: OnCalibration = lambda *_: None
) -> DeviceCalibration:
    """Calibrate this machine and store the correction.

    Args:
        device: a device of this machine.
        with_cells: whether cells are timed; otherwise the runs so far are fitted alone.
        on_progress: called with (activity, fraction done).

    Raises:
        DeviceError: the device is not in this machine.
        InputError: the runs cannot be stored.
        MeasurementError: no cell was kept; the message has the reasons.
    """
    from profiler.timing.kept_corrections import keep_correction

    machine = this_machine(device)
    if machine is None:
        raise DeviceError(
            f"{device.name} is not in this machine, so it cannot be calibrated; use --device cpu"
        )
    check_runs_file()
    clock, cells = _time_cells(device, machine, on_progress) if with_cells else (None, ())
    # The factors of levers are not those of this machine.
    plain = [run for run in read_runs(machine) if not run.candidate.workload.levers]
    loaded = _loaded(plain[-MOST_FITTED:], device, on_progress)
    correction = fit_correction(loaded)
    keep_correction(machine, correction)
    return DeviceCalibration(
        machine=machine, clock=clock, cells=cells, runs=tuple(loaded), correction=correction
    )


def _time_cells(
    device: DeviceSpec, machine: Machine, on_progress: OnCalibration
) -> tuple[str, tuple[TimedCell, ...]]:
    """Return the clock and the timed cells; the steady ones are recorded."""
    from statistics import median

    from profiler.running.time_limit import UNKNOWN_LIMIT_SECONDS
    from profiler.timing.calibration_cells import (
        CellsRequest,
        CellsResult,
        calibration_candidates,
        run_cells,
    )

    candidates = calibration_candidates(on_cuda=device.is_cuda)
    found = run_in_process(
        run_cells,
        CellsRequest(device="cuda" if device.is_cuda else "cpu", candidates=candidates),
        CellsResult,
        timeout_seconds=UNKNOWN_LIMIT_SECONDS,
        on_progress=lambda text, done: on_progress(text, 0.7 * done),
    )
    cells = []
    for candidate, seconds, reason, waited in zip(
        candidates, found.seconds, found.reasons, found.waits, strict=True
    ):
        load = candidate.workload
        is_alone = waited <= LARGEST_WAIT
        kept = is_alone and record_run(machine, candidate, seconds, source="calibrate")
        cells.append(
            TimedCell(
                name=f"{load.model} {load.method} {load.micro_batch} {load.precision}",
                seconds=median(seconds) if seconds else None,
                disagreement=disagreement(seconds),
                waited=waited,
                kept=kept,
                reason=reason if is_alone else f"waited {100 * waited:.0f} % for a processor",
            )
        )
    if not any(cell.kept for cell in cells):
        check_runs_file()  # it was writable at the start
        raise MeasurementError(_why_none(cells))
    return found.clock, tuple(cells)


def _why_none(cells: Sequence[TimedCell]) -> str:
    """Return the reasons for which no cell was kept."""
    failed = [cell for cell in cells if cell.seconds is None]
    waited = sum(cell.waited > LARGEST_WAIT for cell in cells if cell.seconds is not None)
    reason = f": {failed[0].reason}" if failed else ""
    if len(failed) == len(cells):
        return f"none of the {len(cells)} cells ran{reason}"
    counts = (
        (len(cells) - len(failed) - waited, f"differed by more than {LARGEST_DISAGREEMENT:.0%}"),
        (waited, "waited for a processor"),
        (len(failed), f"did not run{reason}"),
    )
    parts = ", ".join(f"{count} {what}" for count, what in counts if count)
    return (
        f"none of the {len(cells)} cells was kept ({parts}); the machine is busy: calibrate again "
        "when nothing else runs"
    )


def _loaded(
    runs: list[MeasuredRun], device: DeviceSpec, on_progress: OnCalibration
) -> list[LoadedRun]:
    """Return the runs with their predicted loads, uncorrected."""
    from profiler.prediction.report import step_load
    from profiler.replay.step_replay import KernelMemory, ReplayOptions, replay_step
    from profiler.timing.rates import rates
    from profiler.timing.step_load import LAUNCHES

    options = ReplayOptions(kernel_memory=KernelMemory.NONE)
    loaded = []
    for number, run in enumerate(runs):
        workload = run.candidate.workload
        on_progress(f"predicting {workload.model}", 0.7 + 0.3 * number / len(runs))
        try:
            plain = rates(device, workload, corrected=False)
            if plain is None:
                continue
            log = replay_step(run.candidate, device=device, options=options)
        except BudgetplanError:  # a model that this installation lacks
            continue
        load = step_load(log, plain, workload)
        loaded.append(
            LoadedRun(
                backbone=workload.model,
                load=load,
                host_seconds=plain.host_seconds(float(load[LAUNCHES])),
                seconds=run.seconds,
            )
        )
    return loaded
