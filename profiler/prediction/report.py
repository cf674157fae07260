"""The replayed rung: one replay of a candidate, read as bytes, FLOPs, seconds on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from profiler.device_rules.caching_allocator import (
    AllocatorSettings,
    CachingAllocator,
    configuration,
)
from profiler.devices.table import (
    DeviceSpec,
    cuda_context,
    device_label,
    device_spec,
    multiprocessors,
    workspaces_of,
)
from profiler.models.parameter_count import count_parameters
from profiler.prediction.allocator_steps import BLOCK_BYTES, run_steps
from profiler.records import Flops, Memory, OwnerBytes, Report, Rung, UnitReport
from profiler.replay.event_log import BACKWARD, FORWARD, INPUT, OPTIMIZER, RECOMPUTE, EventLog
from profiler.replay.unit_spans import unit_spans
from profiler.timing.rates import rates
from profiler.timing.roofline import Rates
from profiler.units import format_bytes
from profiler.workload import Candidate, Workload

if TYPE_CHECKING:
    pass


def predict(
    candidate: Candidate,
    *,
    device: str,
    settings: AllocatorSettings | None = None,
    as_published: bool = False,
) -> Report:
    """Replay a candidate and report it on a device.

    Args:
        candidate: what to predict.
        device: ``cpu`` or a name of the sourced table.
        settings: of the CUDA caching allocator; None for those of `configuration`.
        as_published: count FLOPs as arXiv 2507.23536 did (groups left out of weight gradients).

    Raises:
        UnknownNameError: no such device or model.
        UsageError: the method does not work on the backbone.
        InputError: the placement names a unit the backbone lacks.
    """
    log = replay_on(candidate, device=device, as_published=as_published)
    return report_of(candidate, log, spec=device_spec(device), settings=settings)


def replay_on(candidate: Candidate, *, device: str, as_published: bool = False) -> EventLog:
    """Replay a candidate with the kernels of a device.

    Args:
        candidate: what to replay.
        device: ``cpu`` or a name of the sourced table.
        as_published: count FLOPs as arXiv 2507.23536 did.
    """
    from profiler.device_rules.cpu_kernels import TURING
    from profiler.replay.step_replay import replay

    spec = device_spec(device)
    return replay(
        candidate,
        target="cuda" if spec.is_cuda else "cpu",
        capability=spec.compute_capability or TURING,
        on=multiprocessors(spec),
        as_published=as_published,
    )


def report_of(
    candidate: Candidate,
    log: EventLog,
    *,
    spec: DeviceSpec,
    settings: AllocatorSettings | None = None,
) -> Report:
    """Read a log as a report on a device."""
    workload = candidate.workload
    roofline = rates(spec, workload)
    notes: list[str] = []
    if spec.is_cuda:
        log = log.rounded(BLOCK_BYTES)
        if settings is None:
            settings = AllocatorSettings.parse(configuration())
            notes.append(
                f"reserved bytes are those of {configuration()}, under which it is trained"
            )
        memory = _cuda_memory(log, spec, settings, notes)
    else:
        memory = _host_memory(log)
    if spec.memory_bytes is not None and (memory.device_bytes or 0) > spec.memory_bytes:
        notes.append(
            f"it needs more than the {format_bytes(spec.memory_bytes)} of {spec.full_name}"
        )
    seconds = None
    if roofline is not None:
        seconds = step_seconds(log, roofline, workload)
        notes.append(f"time is a roofline: {roofline.source}")
        if any(op.launches > 1 for op in log.operations):
            notes.append("scans are timed as PyTorch's own loops; mamba_ssm's kernel takes less")
    joules = None
    if seconds is not None and roofline is not None and roofline.watts is not None:
        joules = seconds * roofline.watts
        notes.append("energy is that time at the board power, uncalibrated")
    return Report(
        candidate=candidate,
        device=device_label(spec.name),
        rung=Rung.REPLAYED,
        memory=memory,
        flops=step_flops(log, workload),
        step_seconds=seconds,
        energy_joules=joules,
        parameters=count_parameters(workload),
        units=unit_reports(log, candidate, roofline),
        notes=tuple(notes),
    )


def _host_memory(log: EventLog) -> Memory:
    return Memory(
        peak_bytes=log.peak_bytes,
        reserved_bytes=None,
        device_bytes=log.peak_bytes,
        at_peak=log.owners_at(log.peak_tick),
        max_by_group=log.max_by_owner(),
    )


def _cuda_memory(
    log: EventLog, spec: DeviceSpec, settings: AllocatorSettings, notes: list[str]
) -> Memory:
    workspaces = workspaces_of(spec)
    context = cuda_context(spec)
    notes.append(f"CUDA context {'assumed' if context.is_assumed else 'measured'}")
    if any("convolution" in name for name in log.operation_names):
        notes.append("cuDNN picks convolution workspaces at run time; they are not included")
    allocator = CachingAllocator(settings)
    log = run_steps(allocator, log, steps=3, workspaces=workspaces)
    workspace = sum(workspaces)
    at_peak, highest = log.owners_at(log.peak_tick), log.max_by_owner()
    return Memory(
        peak_bytes=log.peak_bytes + workspace,
        reserved_bytes=allocator.peak_reserved_bytes,
        device_bytes=allocator.peak_reserved_bytes + context.nbytes,
        at_peak=_with_temporary(at_peak, workspace),
        max_by_group=_with_temporary(highest, workspace),
    )


def _with_temporary(owners: OwnerBytes, extra: int) -> OwnerBytes:
    values = {name: getattr(owners, name) for name in OwnerBytes.__dataclass_fields__}
    return OwnerBytes(**(values | {"temporary": owners.temporary + extra}))


def step_flops(log: EventLog, workload: Workload) -> Flops:
    """Return the FLOPs of a whole optimizer step (a replay shows at most two micro-batches)."""
    shown = min(workload.accumulation, 2)
    times = workload.accumulation / shown
    return Flops(
        forward=round(log.flops(FORWARD) * times),
        backward=round(log.flops(BACKWARD) * times),
        recompute=round(log.flops(RECOMPUTE) * times),
        optimizer=log.flops(OPTIMIZER),
    )


def step_seconds(log: EventLog, roofline: Rates, workload: Workload) -> float:
    """Return the roofline time of a whole optimizer step."""
    shown = min(workload.accumulation, 2)
    each = [op for op in log.operations if op.phase in (INPUT, FORWARD, BACKWARD, RECOMPUTE)]
    update = [op for op in log.operations if op.phase == OPTIMIZER]
    return roofline.total_seconds(each) * workload.accumulation / shown + roofline.total_seconds(
        update
    )


def unit_reports(
    log: EventLog, candidate: Candidate, roofline: Rates | None
) -> tuple[UnitReport, ...]:
    """Return one row per unit, of the first micro-batch."""
    shown = min(candidate.workload.accumulation, 2)
    live = log.live_bytes()
    spans = unit_spans(log)
    rows = []
    for index, name in enumerate(log.units):
        span = spans.get(index)
        if span is None:
            continue
        own = [op for op in log.operations if op.unit == index]
        forward = [op for op in own if op.phase == FORWARD]
        again = [op for op in own if op.phase == RECOMPUTE]
        back = [op for op in own if op.phase == BACKWARD]
        working = None
        if span.backward is not None:
            start, end = span.backward
            working = int(live[start : end + 1].max() - live[start])
        rows.append(
            UnitReport(
                name=name,
                decision=candidate.placement.decision(name),
                stored_bytes=int(live[span.exit] - live[span.enter]),
                boundary_bytes=log.boundary_bytes[index],
                working_bytes=working,
                forward_flops=sum(op.flops for op in forward) // shown,
                backward_flops=sum(op.flops for op in back) // shown,
                recompute_flops=sum(op.flops for op in again) // shown,
                forward_seconds=roofline.total_seconds(forward) / shown if roofline else None,
                recompute_seconds=roofline.total_seconds(again) / shown if roofline else None,
            )
        )
    return tuple(rows)
