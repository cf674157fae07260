"""Rehearsal: run a plan's training through PyTorch's CUDA code on an emulated GPU.

It shows what only CUDA shows: whether every operation exists for the precision, whether the step,
the evaluation, the checkpoint and a resumed step run to their end under the plan's memory cap, and
what PyTorch's allocator reserves for them. It shows no time, no energy and no accuracy.

Limitations: kernels do not run, so an error of a kernel itself stays hidden. cuDNN and cuSOLVER
request no workspace. The CUDA context is that of the device table.
"""

from __future__ import annotations

from planner.plan import Plan
from planner.training.rehearsal_run import HOST_BYTES, RehearsalRequest, RehearsedRun, run_rehearsal
from profiler.devices.table import DeviceSpec, cuda_context, device_label
from profiler.errors import MeasurementError, OutOfMemoryError, UsageError
from profiler.models.parameter_count import count_parameters
from profiler.records import Memory, Report, Rung
from profiler.running.emulated.gpu import emulated_environment
from profiler.running.sandbox import Progress, run_in_process
from profiler.running.time_limit import START_SECONDS, limit_seconds
from profiler.units import MIB, format_bytes

REHEARSAL_STEPS = 3

FIXED_SECONDS = 20.0
"""Expected time of a rehearsal without its steps: ViT-S takes about that on an idle core."""

SECONDS_PER_PARAMETER = 1e-7
"""Assumed time to make, copy and save a parameter of the model: 10 million in a second."""

STEP_SECONDS = 0.5
"""Assumed host time of a micro-batch. Its kernels do nothing."""

STEADY_STAGE = "a training step"


def rehearse(
    plan: Plan,
    device: DeviceSpec,
    *,
    steps: int = REHEARSAL_STEPS,
    on_progress: Progress | None = None,
) -> Report:
    """Run a plan's training on an emulated GPU and report its memory.

    Args:
        plan: plan to rehearse.
        device: GPU to emulate.
        steps: number of training steps before the evaluation, at least two.
        on_progress: called with (activity, fraction done).

    Raises:
        UsageError: fewer than two steps, or a device that is no GPU.
        DeviceError: no GPU can be emulated here.
        OutOfMemoryError: the run needs more than the plan's budget.
        MeasurementError: the run fails on this GPU.
    """
    if steps < 2:
        raise UsageError(f"a rehearsal needs at least two steps, got {steps!r}")
    context = cuda_context(device)
    cap_bytes = max(MIB, plan.budget_bytes - context.nbytes)
    request = RehearsalRequest(
        candidate=plan.candidate, cap_bytes=cap_bytes, recipe=plan.recipe, steps=steps
    )
    try:
        run = run_in_process(
            run_rehearsal,
            request,
            RehearsedRun,
            timeout_seconds=rehearsal_limit(plan, steps=steps),
            on_progress=on_progress,
            environment=emulated_environment(device),
        )
    except OutOfMemoryError as error:
        if "CUDA" in error.detail:
            raise OutOfMemoryError(cap_bytes=plan.budget_bytes, detail=error.detail) from error
        raise MeasurementError(
            f"the rehearsal needs more than {format_bytes(HOST_BYTES)} of this machine's own "
            f"memory ({error.detail})"
        ) from error
    return rehearsal_report(plan, device, run)


def rehearsal_limit(plan: Plan, *, steps: int) -> float:
    """Return the seconds after which a rehearsal hangs for certain and is stopped.

    Kernels do nothing, so its time is that of the host and grows with the numbers of parameters and
    of micro-batches.

    Args:
        plan: plan to rehearse.
        steps: number of training steps before the evaluation.
    """
    parameters = plan.prediction.parameters.total
    micro_batches = (steps + 1) * plan.candidate.workload.accumulation
    expected = FIXED_SECONDS + SECONDS_PER_PARAMETER * parameters + STEP_SECONDS * micro_batches
    return limit_seconds(expected, least_seconds=START_SECONDS)


def rehearsal_report(plan: Plan, device: DeviceSpec, run: RehearsedRun) -> Report:
    """Return the readings of a rehearsal as a report."""
    context = cuda_context(device)
    steady = next(reading for reading in run.stages if reading.stage == STEADY_STAGE)
    largest = max(run.stages, key=lambda reading: reading.reserved_bytes)
    notes = [
        f"PyTorch's CUDA code ran on an emulated {device.full_name}: its kernels did nothing, so "
        "there is no time and no accuracy",
        "workspaces of cuDNN and cuSOLVER are not included",
        f"CUDA context {'assumed' if context.is_assumed else 'measured'}",
        f"the whole run reserved at most {format_bytes(largest.reserved_bytes)}, in "
        f"{largest.stage}",
    ]
    if not run.expandable_segments:
        notes.append("the allocator ran under segments of fixed size")
    return Report(
        candidate=plan.candidate,
        device=device_label(device.name),
        rung=Rung.EMULATED,
        memory=Memory(
            peak_bytes=steady.peak_bytes,
            reserved_bytes=steady.reserved_bytes,
            device_bytes=steady.reserved_bytes + context.nbytes,
        ),
        flops=None,
        step_seconds=None,
        energy_joules=None,
        parameters=count_parameters(plan.candidate.workload),
        notes=tuple(notes),
        details={
            "stages": [
                {
                    "stage": reading.stage,
                    "peak_bytes": reading.peak_bytes,
                    "reserved_bytes": reading.reserved_bytes,
                }
                for reading in run.stages
            ]
        },
    )
