"""Runs an order in the sandbox: a validation, a measurement or a probe.

    run_order     any order
    run_for_real  a validation: a few training steps under a budget

A validation on a CPU in place of the planned GPU compares the measured peak with a replay of the
same candidate for the CPU. The memory, time and energy on the GPU remain predictions. An fp16
candidate runs there in fp32 under the same placement (``as_run_on_cpu``): the run shows that the
candidate learns, and its measurement names fp32. The memory in fp16 is that of the replay.
"""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from planner.cost.budget import needed_bytes
from planner.workers.orders import AnyOrder, MeasureOrder, ProbeOrder, RunOrder
from planner.workers.outcomes import Finished, FinishedMeasurement, FinishedProbe, FinishedRun
from profiler.errors import OutOfMemoryError
from profiler.running.sandbox import Progress, run_in_process
from profiler.units import format_bytes_as
from profiler.workload import Candidate

if TYPE_CHECKING:
    from planner.training.validation import Validation
    from profiler.records import Report

HOST_CAP_RATIO = 1.05
"""Memory cap of a run on a CPU in place of the GPU, as a ratio of its replayed peak (>= 1)."""

FP16_NOTE = (
    "the fp16 plan ran in fp32 on the CPU, under the same placement: the run shows that it learns; "
    "its memory in fp16 is replayed, and the gradient scaler was not tried"
)
"""Note on a run of an fp16 candidate on a CPU."""


def other_limit_note(prediction: Report, validation: Validation) -> str | None:
    """Return a note on a run on a GPU whose prediction has a power limit; None for other runs.

    Only ``train`` sets a limit: it changes the GPU for all processes.

    Args:
        prediction: the prediction of the plan.
        validation: the real run.
    """
    watts = prediction.power_limit_watts
    if watts is None or validation.report.device.kind != "cuda":
        return None
    return (
        f"the run was at the GPU's present power limit, not at the planned {watts:g} W: do not "
        "compare its time and energy with the predicted ones"
    )


def run_order(
    order: AnyOrder,
    *,
    device: str,
    storage: str,
    on_progress: Progress,
    cancelled: threading.Event | None = None,
) -> Finished:
    """Run an order on a device of this machine.

    Args:
        order: the order.
        device: ``cpu``, or the name of this machine's GPU.
        storage: URL by which this machine reaches the study of a probe.
        on_progress: called with (activity, fraction done).
        cancelled: event by which another thread ends the run; None for none.

    Raises:
        InputError: the data or the weights cannot be used.
        OutOfMemoryError: the run needs more than its budget.
        MeasurementError: the run failed for another reason.
    """
    if isinstance(order, ProbeOrder):
        return _run_probe(order, storage=storage, on_progress=on_progress, cancelled=cancelled)
    if isinstance(order, MeasureOrder):
        return _run_measurement(order, device=device, on_progress=on_progress, cancelled=cancelled)
    return run_for_real(order, device=device, on_progress=on_progress, cancelled=cancelled)


def _run_measurement(
    order: MeasureOrder,
    *,
    device: str,
    on_progress: Progress,
    cancelled: threading.Event | None,
) -> FinishedMeasurement:
    from profiler.running.measurement import measure
    from profiler.timing.measured_runs import record_report

    report = measure(
        order.candidate,
        device=device,
        cap_bytes=order.cap_bytes,
        steps=order.steps,
        warmup=order.warmup,
        expected_step_seconds=order.step_seconds,
        on_progress=on_progress,
        cancelled=cancelled,
    )
    # on this machine, whose predictions it corrects
    record_report(report, source="measure")
    return FinishedMeasurement(report=report)


def _run_probe(
    order: ProbeOrder, *, storage: str, on_progress: Progress, cancelled: threading.Event | None
) -> FinishedProbe:
    """Train the learners in a process of its own, which stores each training in the study.

    If this process dies, the next worker goes on from the trainings that are stored.
    """
    from planner.training.find_rate import find_rate
    from planner.training.probe_messages import ProbeResult
    from planner.training.probe_process import run_probe

    result = run_in_process(
        run_probe if order.purpose == "compare" else find_rate,
        order.request(storage),
        ProbeResult,
        timeout_seconds=order.limit_seconds,
        on_progress=on_progress,
        cancelled=cancelled,
    )
    return FinishedProbe(
        keys=tuple(run.key for run in result.runs),
        earlier_runs=result.earlier_runs,
        seconds=result.seconds,
        reason=result.reason,
        failures=result.failures,
        test_images=result.test_images,
    )


def run_for_real(
    order: RunOrder,
    *,
    device: str,
    on_progress: Progress,
    cancelled: threading.Event | None = None,
) -> FinishedRun:
    """Run an order for a few steps on a device of this machine.

    Args:
        order: the order.
        device: ``cpu``, or the name of this machine's GPU.
        on_progress: called with (activity, fraction done).
        cancelled: event by which another thread ends the run; None for none.

    Raises:
        InputError: the data or the weights cannot be used.
        OutOfMemoryError: the run needs more than the budget.
        MeasurementError: the run failed for another reason.
    """
    from planner.training.validation import (
        STAND_IN_TEST_SECONDS,
        STAND_IN_TRAINING_SECONDS,
        TEST_SECONDS,
        TRAINING_SECONDS,
        time_limit,
        validate,
    )
    from profiler.devices.table import CPU
    from profiler.prediction.report import predict

    run, candidate = order.options_here(), order.candidate
    host, cap_bytes, notes = None, order.budget_bytes, tuple[str, ...]()
    if device == "cpu" and order.planned.kind != "cpu":
        on_progress("replaying for the CPU", 0.0)
        candidate = as_run_on_cpu(candidate)
        notes = () if candidate == order.candidate else (FP16_NOTE,)
        host = predict(candidate, device=CPU)
        # The budget is that of the GPU. The CPU's kernels may need more for the same candidate.
        cap_bytes = max(cap_bytes, math.ceil(HOST_CAP_RATIO * host.memory.peak_bytes))
    step_seconds = order.step_seconds if host is None else host.step_seconds
    stands_in = host is not None
    validation = validate(
        candidate,
        run,
        runs_on=device,
        recipe=order.recipe,
        budget_bytes=cap_bytes,
        training_seconds=STAND_IN_TRAINING_SECONDS if stands_in else TRAINING_SECONDS,
        test_seconds=STAND_IN_TEST_SECONDS if stands_in else TEST_SECONDS,
        timeout_seconds=time_limit(step_seconds, steps=run.steps),
        on_progress=on_progress,
        cancelled=cancelled,
    )
    used_bytes = needed_bytes(validation.report)
    if host is None and used_bytes > order.budget_bytes:
        raise OutOfMemoryError(
            cap_bytes=order.budget_bytes,
            detail=f"it used {format_bytes_as(used_bytes, order.budget_bytes)}",
        )
    validation = replace(validation, notes=(*validation.notes, *notes))
    return FinishedRun(validation=validation, host_prediction=host)


def as_run_on_cpu(candidate: Candidate) -> Candidate:
    """Return the candidate that a CPU runs in place of the planned GPU: fp32 instead of fp16.

    A matrix product in fp16 takes 28 times as long on a CPU as in fp32 (an MLP of ViT-S on a Xeon
    with AVX-512, torch 2.15). The placement and everything else stay.
    """
    if candidate.workload.precision != "fp16":
        return candidate
    return replace(candidate, workload=candidate.workload.replace(precision="fp32"))
