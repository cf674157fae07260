"""The measured rung: a few real steps in a process of their own, under a hard memory cap.

On a CPU the peak is the allocator's own account from before the model was built, read over one
steady step; on a CUDA device it is ``max_memory_allocated`` and ``max_memory_reserved`` over the
same. Times come from other steps, without the recording. Inputs are random: what is measured does
not depend on them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from profiler.devices.table import device_label
from profiler.environment import environment
from profiler.errors import DeviceError, UsageError
from profiler.models.parameter_count import count_parameters
from profiler.records import DeviceLabel, Memory, Report, Rung
from profiler.running.sandbox import (
    Progress,
    cap_cuda_memory,
    cap_host_memory,
    lift_host_cap,
    run_in_process,
)
from profiler.units import format_seconds
from profiler.workload import Candidate, Workload

if TYPE_CHECKING:
    from profiler.training_step import Batch, TrainingStep

_UNSTEADY = 2.0
"""How many times the shortest step the longest of a run may take before the report says so."""

Fetch = Callable[[], "Batch"]


def measure(
    candidate: Candidate,
    *,
    device: str,
    cap_bytes: int | None = None,
    steps: int = 5,
    warmup: int = 2,
    on_progress: Progress | None = None,
) -> Report:
    """Really run a candidate and report what was seen.

    Args:
        candidate: what to run, with random weights and random images.
        device: ``cpu``, or the name of this machine's GPU in the table, or ``cuda``.
        cap_bytes: hard limit on memory.
        steps: timed steps.
        warmup: steps before anything is read (the optimizer makes its state).
        on_progress: called with (what it does, fraction done).

    Raises:
        OutOfMemoryError: the cap was exceeded.
        DeviceError: the device is not in this machine.
        MeasurementError: the run failed in another way.
    """
    if steps < 1 or warmup < 1:
        raise UsageError("a measurement needs at least one warm-up step and one timed step")
    request = {
        "candidate": candidate.to_json(),
        "device": "cpu" if device == "cpu" else "cuda",
        "cap_bytes": cap_bytes,
        "steps": steps,
        "warmup": warmup,
    }
    seen = run_in_process(
        "profiler.running.measurement:run_measurement",
        request,
        cap_bytes=cap_bytes,
        on_progress=on_progress,
    )
    return report_measurement(candidate, seen, device=device)


def report_measurement(candidate: Candidate, seen: Mapping[str, Any], *, device: str) -> Report:
    """Turn what a measuring process sent back into a report."""
    label = (
        DeviceLabel(name="cuda", full_name=str(seen["device_name"]), kind="cuda")
        if device == "cuda"
        else device_label(device)
    )
    seconds, notes = seen["step_seconds"], list(seen["notes"])
    if seconds and max(seconds) > _UNSTEADY * min(seconds):
        notes.append(
            f"the steps took from {format_seconds(min(seconds))} to {format_seconds(max(seconds))}:"
            " the machine was busy, or not yet warm"
        )
    return Report(
        candidate=candidate,
        device=label,
        rung=Rung.MEASURED,
        memory=Memory(
            peak_bytes=int(seen["peak_bytes"]),
            reserved_bytes=seen["reserved_bytes"],
            device_bytes=seen["device_bytes"],
        ),
        flops=None,
        step_seconds=statistics.median(seconds) if seconds else None,
        energy_joules=seen["energy_joules"],
        parameters=count_parameters(candidate.workload),
        notes=tuple(notes),
        details={"step_seconds": seconds, "environment": seen["environment"]},
    )


def run_measurement(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Run in the child process: build, warm up, read the peak, time."""
    import torch

    from profiler.training_step import settled_heap

    candidate = Candidate.from_json(request["candidate"])
    on_cuda = request["device"] == "cuda"
    if on_cuda and not torch.cuda.is_available():
        raise DeviceError("there is no CUDA device in this machine; use --device cpu")
    if request["cap_bytes"]:
        if on_cuda:
            cap_cuda_memory(int(request["cap_bytes"]))
        else:
            cap_host_step(candidate.workload, int(request["cap_bytes"]))
    torch.manual_seed(0)
    run = measure_on_cuda if on_cuda else measure_on_host
    with settled_heap():
        seen = run(
            lambda: build_step(candidate, device=request["device"]),
            steps=int(request["steps"]),
            warmup=int(request["warmup"]),
            progress=progress,
        )
    return seen | {"environment": environment()}


def cap_host_step(workload: Workload, cap_bytes: int) -> None:
    """Cap what a training step may allocate, all imports done before: timm's take 100 MiB."""
    import torch

    from profiler.models.build import build_model

    build_model(workload, device="meta")
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    cap_host_memory(cap_bytes)


def build_step(candidate: Candidate, *, device: str) -> tuple[TrainingStep, list[Fetch]]:
    """Make the training step of a candidate on random weights, and what feeds it."""
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
    build: Callable[[], tuple[TrainingStep, list[Fetch]]],
    *,
    steps: int,
    warmup: int,
    progress: Progress,
) -> dict[str, Any]:
    """Read the CPU allocator's account of one steady step, then time others."""
    from profiler.device_rules.cpu_allocator import peak_during

    made: list[tuple[TrainingStep, list[Fetch]]] = []
    caps_again: list[Callable[[], None]] = []

    def prepare() -> None:
        progress("building the model", 0.0)
        made.append(build())
        for _ in range(warmup):
            progress("warming up", 0.2)
            made[0][0].run(made[0][1])

    def one_step() -> None:
        progress("recording memory", 0.5)
        made[0][0].run(made[0][1])
        caps_again.append(lift_host_cap())  # reading the recording takes as much as a small step

    peak = peak_during(prepare, one_step)
    caps_again[0]()
    seconds = []
    for index in range(steps):
        progress("timing", 0.6 + 0.4 * index / steps)
        start = time.perf_counter()
        made[0][0].run(made[0][1])
        seconds.append(time.perf_counter() - start)
    return {
        "peak_bytes": peak,
        "reserved_bytes": None,
        "device_bytes": peak,
        "step_seconds": seconds,
        "energy_joules": None,
        "device_name": "cpu",
        "notes": ["peak of the CPU allocator's live bytes over one steady step"],
    }


def measure_on_cuda(
    build: Callable[[], tuple[TrainingStep, list[Fetch]]],
    *,
    steps: int,
    warmup: int,
    progress: Progress,
) -> dict[str, Any]:
    """Read the CUDA allocator's peaks over steady steps, their time and their energy."""
    import torch

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

    joules, why_no_energy = energy_of(timed_steps)
    reserved = torch.cuda.max_memory_reserved()
    free_after, total = torch.cuda.mem_get_info()
    outside = max(0, total - free_after - torch.cuda.memory_reserved())
    return {
        "peak_bytes": torch.cuda.max_memory_allocated(),
        "reserved_bytes": reserved,
        "device_bytes": reserved + outside,
        "step_seconds": seconds,
        "energy_joules": None if joules is None else joules / steps,
        "device_name": torch.cuda.get_device_name(),
        "notes": [
            "device bytes: reserved plus everything else in use on the device "
            "(this process's context, and other processes if there are any)",
            *([why_no_energy] if why_no_energy else []),
        ],
    }


def energy_of(run: Callable[[], None]) -> tuple[float | None, str | None]:
    """Run something on this machine's GPU; return its joules, or None and the reason."""
    import torch

    from profiler.devices.nvml import EnergyMeter, open_gpu

    try:
        meter = EnergyMeter(open_gpu(), synchronize=torch.cuda.synchronize)
    except DeviceError as error:
        run()
        return None, str(error)
    with meter:
        run()
    return meter.energy.joules, meter.energy.reason
