"""Rehearsal: run a plan's training through PyTorch's CUDA code on an emulated GPU.

    rehearse       one plan
    rehearse_all   candidates of an answer, several in a process: importing PyTorch takes seconds

It shows what only CUDA shows: whether every operation exists for the precision, whether the step,
the evaluation, the checkpoint and a resumed step run to their end under the plan's memory cap, and
what PyTorch's allocator reserves for them. It shows no time, no energy and no accuracy.

Limitations: kernels do not run, so an error of a kernel itself stays hidden. cuDNN and cuSOLVER
request no workspace. The CUDA context is that of the device table.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from planner.plan import Plan
from planner.recipe import Recipe
from planner.training.rehearsal_run import (
    HOST_BYTES,
    STEADY_STAGE,
    ExhaustedMemory,
    RehearsalBatch,
    RehearsalRequest,
    RehearsalRow,
    RehearsedBatch,
    RehearsedRun,
    run_rehearsals,
)
from planner.training.run_options import LEAST_STEPS
from profiler.devices.table import DeviceSpec, cuda_context, device_label
from profiler.errors import MeasurementError, OutOfMemoryError, UsageError
from profiler.models.parameter_count import count_parameters
from profiler.records import Memory, Report, Rung
from profiler.running.emulated.gpu import emulated_environment
from profiler.running.memory_caps import available_host_bytes
from profiler.running.sandbox import Progress, run_in_process
from profiler.running.time_limit import START_SECONDS, limit_seconds
from profiler.units import GIB, MIB, format_bytes_as
from profiler.workload import Candidate

REHEARSAL_STEPS = 3

FIXED_SECONDS = 20.0
"""Expected time of a rehearsal without its steps: ViT-S takes about that on an idle core."""

SECONDS_PER_PARAMETER = 1e-7
"""Assumed time to make, copy and save a parameter of the model: 10 million in a second."""

STEP_SECONDS = 0.5
"""Assumed host time of a micro-batch. Its kernels do nothing."""

PROCESS_BYTES = 2 * GIB
"""Host memory of a process of rehearsals without its weights: PyTorch's CUDA libraries."""

BYTES_PER_PARAMETER = 16
"""Host memory of a parameter in a rehearsal: its weight on the host, its checkpoint and copies."""


class NotRehearsedError(MeasurementError):
    """The memory of this machine does not suffice for a rehearsal; the plan may well run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """A candidate to rehearse.

    Attributes:
        candidate: workload and placement.
        recipe: recipe of the plan; None for the default one.
        budget_bytes: budget in device bytes.
    """

    candidate: Candidate
    recipe: Recipe | None
    budget_bytes: int


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
        NotRehearsedError: the memory of this machine does not suffice.
        MeasurementError: the run fails on this GPU.
    """
    asked = Rehearsal(candidate=plan.candidate, recipe=plan.recipe, budget_bytes=plan.budget_bytes)
    (found,) = rehearse_all([asked], device, steps=steps, on_progress=on_progress)
    if isinstance(found, MeasurementError):
        raise found
    return found


def rehearse_all(
    asked: Sequence[Rehearsal],
    device: DeviceSpec,
    *,
    steps: int = REHEARSAL_STEPS,
    on_progress: Progress | None = None,
) -> list[Report | MeasurementError]:
    """Rehearse candidates; return the report or the failure of each.

    They run one after the other in as many processes as there are cores, if the memory suffices.

    Raises:
        UsageError: fewer than two steps, or a device that is no GPU.
        DeviceError: no GPU can be emulated here.
        MeasurementError: a process died or took too long.
    """
    if steps < LEAST_STEPS:
        raise UsageError(f"a rehearsal needs at least {LEAST_STEPS} steps, got {steps!r}")
    if not asked:
        return []
    context_bytes = cuda_context(device).nbytes
    requests = [
        RehearsalRequest(
            candidate=_without_compile(each.candidate),
            cap_bytes=max(MIB, each.budget_bytes - context_bytes),
            recipe=each.recipe,
            steps=steps,
        )
        for each in asked
    ]
    rows = _run_in_processes(
        requests,
        device,
        processes=_processes([each.candidate for each in asked]),
        on_progress=on_progress or (lambda *_: None),
    )
    found: list[Report | MeasurementError] = []
    for each, row in zip(asked, rows, strict=True):
        if row.run is None:
            found.append(_rehearsal_error(row, each))
        else:
            found.append(rehearsal_report(each, device, row.run))
    return found


def _processes(candidates: Sequence[Candidate]) -> int:
    """Return the number of processes for which this machine has cores and memory."""
    most_parameters = max(count_parameters(each.workload).total for each in candidates)
    each_bytes = PROCESS_BYTES + BYTES_PER_PARAMETER * most_parameters
    by_memory = available_host_bytes() // each_bytes
    return max(1, min(len(candidates), len(os.sched_getaffinity(0)), by_memory))


def _run_in_processes(
    requests: Sequence[RehearsalRequest],
    device: DeviceSpec,
    *,
    processes: int,
    on_progress: Progress,
) -> list[RehearsalRow]:
    """Return the outcome of each request, in their order."""
    parts = [requests[i::processes] for i in range(processes)]
    cancelled, lock, done = threading.Event(), threading.Lock(), [0.0] * processes

    def run(index: int) -> RehearsedBatch:
        part = parts[index]

        def show(text: str, fraction: float) -> None:
            with lock:
                done[index] = fraction * len(part) / len(requests)
                on_progress(text, sum(done))

        limits = [rehearsal_limit(each.candidate, steps=each.steps) for each in part]
        return run_in_process(
            run_rehearsals,
            RehearsalBatch(requests=tuple(part)),
            RehearsedBatch,
            timeout_seconds=sum(limits),
            on_progress=show,
            environment=emulated_environment(device),
            cancelled=cancelled,
        )

    with ThreadPoolExecutor(processes) as pool:
        running = [pool.submit(run, index) for index in range(processes)]
        try:
            batches = [future.result() for future in running]
        except BaseException:  # nobody waits for the other processes after an error or Ctrl-C
            cancelled.set()
            raise
    rows: list[RehearsalRow] = [batches[0].rows[0]] * len(requests)
    for index, batch in enumerate(batches):
        rows[index::processes] = batch.rows
    return rows


def rehearsal_limit(candidate: Candidate, *, steps: int) -> float:
    """Return the seconds after which a rehearsal hangs for certain and is stopped.

    Kernels do nothing, so its time is that of the host and grows with the numbers of parameters and
    of micro-batches.

    Args:
        candidate: candidate to rehearse.
        steps: number of training steps before the evaluation.
    """
    parameters = count_parameters(candidate.workload).total
    micro_batches = (steps + 1) * candidate.workload.accumulation
    expected = FIXED_SECONDS + SECONDS_PER_PARAMETER * parameters + STEP_SECONDS * micro_batches
    return limit_seconds(expected, least_seconds=START_SECONDS)


def _without_compile(candidate: Candidate) -> Candidate:
    """Return a candidate without ``torch.compile``, whose kernels cannot be made without a GPU."""
    levers = tuple(name for name in candidate.workload.levers if name != "compile")
    return replace(candidate, workload=candidate.workload.replace(levers=levers))


def _rehearsal_error(row: RehearsalRow, asked: Rehearsal) -> MeasurementError:
    """Return the error of a rehearsal that failed, by the memory that ran out."""
    match row.exhausted:
        case ExhaustedMemory.NONE:
            return MeasurementError(row.failure)
        case ExhaustedMemory.DEVICE:
            return OutOfMemoryError(cap_bytes=asked.budget_bytes, detail=row.failure)
        case ExhaustedMemory.HOST:
            limit = format_bytes_as(HOST_BYTES, asked.budget_bytes)
            return NotRehearsedError(
                f"the rehearsal needs more than {limit} of this machine's own memory "
                f"({row.failure})"
            )


def rehearsal_report(asked: Rehearsal, device: DeviceSpec, run: RehearsedRun) -> Report:
    """Return the readings of a rehearsal as a report; its notes are in the unit of the budget."""
    candidate, context = asked.candidate, cuda_context(device)
    steady = next(reading for reading in run.stages if reading.stage == STEADY_STAGE)
    largest = max(run.stages, key=lambda reading: reading.reserved_bytes)
    notes = [
        f"PyTorch's CUDA code ran on an emulated {device.full_name}: its kernels did nothing, so "
        "there is no time and no accuracy",
        "workspaces of cuDNN and cuSOLVER are not included",
        context.note,
        f"the whole run reserved at most "
        f"{format_bytes_as(largest.reserved_bytes, asked.budget_bytes)}, in {largest.stage}",
    ]
    if "compile" in candidate.workload.levers:
        notes.append("it ran without torch.compile")
    if not run.expandable_segments:
        notes.append("the allocator ran under segments of fixed size")
    return Report(
        candidate=candidate,
        device=device_label(device.name),
        rung=Rung.EMULATED,
        memory=Memory(
            peak_bytes=steady.peak_bytes,
            reserved_bytes=steady.reserved_bytes,
            device_bytes=steady.reserved_bytes + context.nbytes,
            run_peak_bytes=largest.reserved_bytes + context.nbytes,
        ),
        flops=None,
        step_seconds=None,
        energy_joules=None,
        parameters=count_parameters(candidate.workload),
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
