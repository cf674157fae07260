"""The measured rung: a few real steps in a process of their own, under a hard memory cap.

On a CPU the peak is read from the allocator's events during a steady step; everything allocated
since the model was built counts. On a CUDA device it is ``max_memory_allocated`` and
``max_memory_reserved`` over the timed steps. On a CPU the timed steps are others than the recorded
one, because recording takes time. Inputs are random: neither memory nor time depends on them.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

import msgspec

from profiler.devices.table import device_label
from profiler.environment import Environment, environment
from profiler.errors import DeviceError, OutOfMemoryError, UsageError
from profiler.json_records import NonNegativeFloat, NonNegativeInt, PositiveInt
from profiler.models.parameter_count import count_parameters
from profiler.records import DeviceKind, DeviceLabel, Memory, Report, Rung
from profiler.running.cuda_context import read_context
from profiler.running.memory_caps import (
    cap_at_budget,
    cap_host_memory,
    lift_host_cap,
    timed_without_cap,
    use_planned_configuration,
)
from profiler.running.messages import Message
from profiler.running.sandbox import Progress, run_in_process
from profiler.running.step_energy import StepEnergy, measure_step_energy
from profiler.running.time_limit import START_SECONDS, limit_seconds
from profiler.units import format_bytes_as, format_seconds
from profiler.workload import Candidate, Workload

if TYPE_CHECKING:
    from torch import Tensor

    from profiler.devices.energy_meter import EnergySource
    from profiler.devices.nvml import Gpu
    from profiler.training_step import Batch, TrainingStep

_UNSTEADY = 2.0
"""Ratio of the longest to the shortest step above which a note about unsteady times is added."""

RECORDED_STEPS = 1
"""Steps on a CPU between the first ones and the timed ones, in which memory is recorded."""

Fetch = Callable[[], "Batch"]


class StepRunner(Protocol):
    """The part of a ``TrainingStep`` that a measurement uses."""

    def run(self, batches: list[Fetch]) -> Tensor:
        """Run one training step and return its loss."""


class MeasurementRequest(Message, frozen=True, kw_only=True):
    """Request of a measuring process.

    Attributes:
        candidate: workload and placement to run.
        device: type of device to run on.
        cap_bytes: hard limit on memory; None for no limit.
        steps: number of timed steps.
        warmup: number of steps before the first reading.
    """

    candidate: Candidate
    device: DeviceKind
    cap_bytes: PositiveInt | None
    steps: PositiveInt
    warmup: PositiveInt


class MeasuredSteps(Message, frozen=True, kw_only=True):
    """Readings of a few real training steps.

    Attributes:
        peak_bytes: highest live bytes of a steady step.
        reserved_bytes: highest reserved bytes of the caching allocator; None on a CPU.
        device_bytes: reserved bytes plus the CUDA context of this process; on a CPU ``peak_bytes``.
        step_seconds: seconds of each timed step.
        energy_joules: average energy of a step; None if it was not measured.
        device_name: full name of the GPU, or ``cpu``.
        environment: software and processor of the process.
        notes: sentences that the reader of the numbers needs.
        energy: how the energy was measured; None if it was not tried.
    """

    peak_bytes: NonNegativeInt
    reserved_bytes: NonNegativeInt | None
    device_bytes: NonNegativeInt
    step_seconds: tuple[NonNegativeFloat, ...]
    energy_joules: NonNegativeFloat | None
    device_name: str
    environment: Environment
    notes: tuple[str, ...] = ()
    energy: StepEnergy | None = None


def measure(
    candidate: Candidate,
    *,
    device: str,
    cap_bytes: int | None = None,
    steps: int = 5,
    warmup: int = 2,
    expected_step_seconds: float | None = None,
    on_progress: Progress | None = None,
    cancelled: threading.Event | None = None,
) -> Report:
    """Run a candidate in a process of its own and report the readings.

    Args:
        candidate: workload and placement; weights and images are random.
        device: ``cpu``, ``cuda``, or the name of this machine's GPU in the device table.
        cap_bytes: hard limit on memory, on CUDA with the context; None for no limit.
        steps: number of timed steps.
        warmup: number of steps before the first reading; the first step allocates the optimizer's
            state.
        expected_step_seconds: predicted seconds of a step, from which the limit of the process's
            time follows; None if not known.
        on_progress: progress callback (activity, fraction done).
        cancelled: event by which another thread ends the process; None for none.

    Raises:
        OutOfMemoryError: the cap was exceeded.
        DeviceError: the device is not in this machine.
        MeasurementError: the run failed in another way.
    """
    if steps < 1 or warmup < 1:
        raise UsageError(
            "a measurement needs at least one warm-up step and one timed step, "
            f"got {warmup} and {steps}"
        )
    request = MeasurementRequest(
        candidate=candidate,
        device="cpu" if device == "cpu" else "cuda",
        cap_bytes=cap_bytes,
        steps=steps,
        warmup=warmup,
    )
    measured = run_in_process(
        run_measurement,
        request,
        MeasuredSteps,
        cap_bytes=cap_bytes,
        timeout_seconds=measurement_limit(
            expected_step_seconds, steps=warmup + RECORDED_STEPS + steps
        ),
        on_progress=on_progress,
        cancelled=cancelled,
    )
    _check_cap(measured, cap_bytes)
    return report_measurement(candidate, measured, device=device)


def measurement_limit(step_seconds: float | None, *, steps: int) -> float:
    """Return the seconds after which a measurement hangs for certain and is stopped.

    Args:
        step_seconds: predicted seconds of a step; None if not known.
        steps: number of all steps.
    """
    expected = None if step_seconds is None else steps * step_seconds
    return limit_seconds(expected, least_seconds=START_SECONDS)


def _check_cap(measured: MeasuredSteps, cap_bytes: int | None) -> None:
    """Compare the needed bytes with the cap, because no cap is exact.

    The kernel's limit on host memory leaves 256 MiB of headroom, and outside Linux there is none.
    On CUDA the context of the process counts, which may be larger than the assumed one.

    Raises:
        OutOfMemoryError: the run used more than the cap.
    """
    used = measured.device_bytes
    if cap_bytes and used > cap_bytes:
        raise OutOfMemoryError(
            cap_bytes=cap_bytes, detail=f"it used {format_bytes_as(used, cap_bytes)}"
        )


def report_measurement(candidate: Candidate, measured: MeasuredSteps, *, device: str) -> Report:
    """Return the readings of a measuring process as a report."""
    label = (
        DeviceLabel(name="cuda", full_name=measured.device_name, kind="cuda")
        if device == "cuda"
        else device_label(device)
    )
    seconds, notes = measured.step_seconds, measured.notes
    if seconds and max(seconds) > _UNSTEADY * min(seconds):
        notes += (
            f"the steps took from {format_seconds(min(seconds))} to {format_seconds(max(seconds))}:"
            " the machine was busy, or not yet warm",
        )
    return Report(
        candidate=candidate,
        device=label,
        rung=Rung.MEASURED,
        memory=Memory(
            peak_bytes=measured.peak_bytes,
            reserved_bytes=measured.reserved_bytes,
            device_bytes=measured.device_bytes,
        ),
        flops=None,
        step_seconds=statistics.median(seconds) if seconds else None,
        energy_joules=measured.energy_joules,
        parameters=count_parameters(candidate.workload),
        notes=notes,
        details={
            "step_seconds": list(seconds),
            "environment": measured.environment.to_json(),
            "energy": None if measured.energy is None else msgspec.to_builtins(measured.energy),
        },
    )


# --- in the child ---------------------------------------------------------------------------------


def run_measurement(request: MeasurementRequest, progress: Progress) -> MeasuredSteps:
    """Build the model, warm up, read the peak and time the steps. Runs in the child process."""
    import torch

    from profiler.devices.energy_source import wants_zeus
    from profiler.models.forward_check import explain_refusals
    from profiler.training_step import gc_frozen

    wants_zeus()  # an error before the model is built, not after the steps
    on_cuda = request.device == "cuda"
    if on_cuda and not torch.cuda.is_available():
        raise DeviceError("there is no CUDA device in this machine; use --device cpu")
    if on_cuda:
        use_planned_configuration()
    if request.cap_bytes:
        if on_cuda:
            cap_at_budget(request.cap_bytes)
        else:
            cap_host_step(request.candidate.workload, request.cap_bytes)
    torch.manual_seed(0)
    run = partial(measure_on_cuda, repeats_for_energy=True) if on_cuda else measure_on_host
    with gc_frozen(), explain_refusals(request.candidate.workload):
        return run(
            lambda: build_step(request.candidate, device=request.device),
            steps=request.steps,
            warmup=request.warmup,
            progress=progress,
        )


def cap_host_step(workload: Workload, cap_bytes: int) -> None:
    """Cap the memory of a training step on the CPU.

    Everything that a step imports is imported first, by building the model without memory. The
    imports take 100 MiB, which would count against the cap.
    """
    import torch

    from profiler.models.build import build_model

    build_model(workload, device="meta")
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    cap_host_memory(cap_bytes)


def build_step(candidate: Candidate, *, device: str) -> tuple[TrainingStep, list[Fetch]]:
    """Return a candidate's training step on random weights, and its sources of random batches."""
    import torch

    from profiler.checkpointing.apply import apply_placement
    from profiler.models.build import build_model
    from profiler.training_step import TrainingStep, make_optimizer

    workload = candidate.workload
    built = build_model(workload)
    model = built.model.to(device)
    apply_placement(model, candidate.placement, units=built.units)
    on_cuda = device != "cpu"
    optimizer = make_optimizer(model, workload, method=built.method, foreach=on_cuda)
    built.method.on_training_start(model, total_steps=1000)
    step = TrainingStep(
        model, optimizer, workload, method=built.method, device_type="cuda" if on_cuda else "cpu"
    )
    shape = (workload.micro_batch, 3, workload.image_size, workload.image_size)

    def fetch() -> Batch:
        images = torch.rand(shape, device=device)
        labels = torch.zeros(shape[0], dtype=torch.long, device=device)
        return images, labels

    return step, [fetch] * workload.accumulation


def measure_on_host(
    build: Callable[[], tuple[StepRunner, list[Fetch]]],
    *,
    steps: int,
    warmup: int,
    progress: Progress,
) -> MeasuredSteps:
    """Record the CPU allocator over one steady step, then time other steps without the cap."""
    from profiler.device_rules.cpu_allocator import peak_during

    step: StepRunner
    batches: list[Fetch]
    set_cap_again: Callable[[], None]

    def prepare() -> None:
        nonlocal step, batches
        progress("building the model", 0.0)
        step, batches = build()
        for _ in range(warmup):
            progress("warming up", 0.2)
            step.run(batches)

    def one_step() -> None:
        nonlocal set_cap_again
        progress("recording memory", 0.5)
        step.run(batches)
        # Reading the recording takes as much memory as a small step, which must not count.
        set_cap_again = lift_host_cap()

    peak = peak_during(prepare, one_step)
    set_cap_again()
    seconds = []
    with timed_without_cap():
        for index in range(steps):
            progress("timing", 0.6 + 0.4 * index / steps)
            start = time.perf_counter()
            step.run(batches)
            seconds.append(time.perf_counter() - start)
        energy = _host_energy(lambda: step.run(batches), statistics.median(seconds), progress)
    return MeasuredSteps(
        peak_bytes=peak,
        reserved_bytes=None,
        device_bytes=peak,
        step_seconds=tuple(seconds),
        energy_joules=None if energy is None else energy.joules,
        energy=energy,
        device_name="cpu",
        environment=environment(),
        notes=("peak of the CPU allocator's live bytes over one steady step",),
    )


def _host_energy(
    run_step: Callable[[], object], step_seconds: float, progress: Progress
) -> StepEnergy | None:
    """Return the energy of the CPU in a step; None if its packages have no readable counters."""
    from profiler.devices.energy_meter import EnergyMeter
    from profiler.devices.energy_source import cpu_source

    source = cpu_source()
    if source is None:
        return None
    if isinstance(source, DeviceError):
        return StepEnergy(joules=None, reason=str(source))
    progress("measuring energy", 0.95)
    return measure_step_energy(run_step, EnergyMeter(source), step_seconds=step_seconds)


def measure_on_cuda(
    build: Callable[[], tuple[StepRunner, list[Fetch]]],
    *,
    steps: int,
    warmup: int,
    progress: Progress,
    repeats_for_energy: bool = False,
) -> MeasuredSteps:
    """Read the CUDA allocator's peaks over the timed steps, and their energy.

    Args:
        build: returns the training step and its sources of batches.
        steps: number of timed steps.
        warmup: number of steps before them.
        progress: progress callback.
        repeats_for_energy: whether more steps are run until the sensor has windows that are long
            enough; otherwise the energy is that of the timed steps alone.
    """
    import torch

    from profiler.devices.energy_source import gpu_source

    gpu = _gpu_or_error()
    source = gpu_source(gpu)
    # before this process uses the GPU
    idle_watts = None if isinstance(source, DeviceError) else source.power_watts()
    progress("building the model", 0.0)
    step, batches = build()
    for _ in range(warmup):
        progress("warming up", 0.2)
        step.run(batches)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    seconds: list[float] = []

    def timed_steps() -> None:
        for index in range(steps):
            progress("measuring", 0.3 + 0.7 * index / steps)
            start = time.perf_counter()
            step.run(batches)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)

    joules, why_no_energy = energy_of(timed_steps, source)
    energy = None
    if repeats_for_energy and not isinstance(source, DeviceError) and _has_sensor(source):
        progress("measuring energy", 0.95)
        step_seconds = statistics.median(seconds)
        energy = _cuda_energy(lambda: step.run(batches), source, step_seconds, idle_watts)
        if energy.joules is not None:  # the timed steps may be too short for the sensor
            why_no_energy = None
    reserved = torch.cuda.max_memory_reserved()
    context = read_context(gpu)
    return MeasuredSteps(
        peak_bytes=torch.cuda.max_memory_allocated(),
        reserved_bytes=reserved,
        device_bytes=reserved + context.nbytes,
        step_seconds=tuple(seconds),
        energy_joules=_joules_of_step(joules, steps, energy),
        energy=energy,
        device_name=torch.cuda.get_device_name(),
        environment=environment(),
        notes=(context.note, *([why_no_energy] if why_no_energy else [])),
    )


def _joules_of_step(joules: float | None, steps: int, energy: StepEnergy | None) -> float | None:
    """Return the energy of a step: that of long windows, or else of the timed steps."""
    if energy is not None and energy.joules is not None:
        return energy.joules
    return None if joules is None else joules / steps


def _gpu_or_error() -> Gpu | DeviceError:
    """Return this machine's GPU, or the error of opening it."""
    from profiler.devices.nvml import open_gpu

    try:
        return open_gpu()
    except DeviceError as error:
        return error


def _has_sensor(source: EnergySource) -> bool:
    """Return whether the energy or the power of a GPU can be read."""
    return source.counter_joules() is not None or source.power_watts() is not None


def _cuda_energy(
    run_step: Callable[[], object],
    source: EnergySource,
    step_seconds: float,
    idle_watts: float | None,
) -> StepEnergy:
    """Return the energy of a step on the GPU, with its temperature afterwards."""
    import torch

    from profiler.devices.energy_meter import EnergyMeter
    from profiler.devices.nvml import NvmlGpu
    from profiler.devices.zeus_counters import ZeusGpu

    meter = EnergyMeter(source, synchronize=torch.cuda.synchronize)
    found = measure_step_energy(run_step, meter, step_seconds=step_seconds, idle_watts=idle_watts)
    celsius = source.celsius() if isinstance(source, NvmlGpu | ZeusGpu) else None
    return msgspec.structs.replace(found, celsius=celsius)


def energy_of(
    run: Callable[[], None], source: EnergySource | DeviceError | None = None
) -> tuple[float | None, str | None]:
    """Run a function and return the energy of this machine's GPU meanwhile.

    Args:
        run: the function.
        source: source of the energy, or the error of opening it; None to open it here.

    Returns:
        (joules, None), or (None, reason) if the energy could not be read.
    """
    import torch

    from profiler.devices.energy_meter import EnergyMeter
    from profiler.devices.energy_source import gpu_source

    found = gpu_source(_gpu_or_error()) if source is None else source
    if isinstance(found, DeviceError):
        run()
        return None, str(found)
    with EnergyMeter(found, synchronize=torch.cuda.synchronize) as meter:
        run()
    return meter.energy.joules, meter.energy.reason
