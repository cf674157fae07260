"""The replayed rung: one replay of a candidate, read as bytes, FLOPs, seconds on a device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from profiler.arrays import Floats
from profiler.device_rules.caching_allocator import (
    AllocatorSettings,
    CachingAllocator,
    configuration,
)
from profiler.devices.host_link import HostWork, host_state_bytes, page_locked_bytes
from profiler.devices.table import (
    DeviceSpec,
    cuda_context,
    device_label,
    workspace_settings,
    workspaces_of,
)
from profiler.models.method_notes import method_notes
from profiler.models.parameter_count import count_parameters
from profiler.prediction.allocator_steps import (
    BLOCK_BYTES,
    SIMULATED_STEPS,
    run_steps,
    smallest_cap,
    workspace_bytes,
)
from profiler.prediction.convolution_workspaces import comfortable_workspace_bytes
from profiler.records import Flops, Memory, OwnerBytes, Report, Rung, UnitReport, ValueInterval
from profiler.replay.event_log import EventLog, OperationRecord, Phase
from profiler.replay.unit_spans import first_spans
from profiler.timing.lever_factors import UNFITTED, layout_class
from profiler.timing.predicted_cost import predicted_cost, time_note
from profiler.timing.rates import rates
from profiler.timing.roofline import Rates
from profiler.units import format_bytes
from profiler.workload import Candidate, Workload

LARGEST_UNFITTED_SHARE = 0.01
"""Share of a step's time that kernels without a factor of ``channels_last`` may take."""

CONVOLUTION_NOTE = (
    "cuDNN's workspaces for convolutions are not included, because cuDNN picks them at run time; "
    "without memory for one, PyTorch takes a slower algorithm"
)
"""Remark on a step with convolutions; ``comfortable_bytes`` has the size of the workspaces."""


def predict(
    candidate: Candidate,
    *,
    device: DeviceSpec,
    settings: AllocatorSettings | None = None,
    published_flops: bool = False,
    power_limit_watts: float | None = None,
) -> Report:
    """Replay a candidate and report it on a device.

    Args:
        candidate: the workload and its placement.
        device: the device to predict for.
        settings: settings of the CUDA caching allocator; None for those of `configuration`.
        published_flops: whether FLOPs are counted as in arXiv 2507.23536 (groups left out of
            weight gradients).
        power_limit_watts: power limit of the GPU; None for the board's own.

    Raises:
        UnknownNameError: no such model.
        UsageError: the method does not work on the backbone, or tensors wait in the host's memory
            and the device has no link to it.
        InputError: the placement names a unit that the backbone lacks.
    """
    from profiler.replay.step_replay import ReplayOptions, replay_step

    options = ReplayOptions(published_flops=published_flops)
    log = replay_step(candidate, device=device, options=options)
    return report_of(
        candidate, log, device=device, settings=settings, power_limit_watts=power_limit_watts
    )


def report_of(
    candidate: Candidate,
    log: EventLog,
    *,
    device: DeviceSpec,
    settings: AllocatorSettings | None = None,
    power_limit_watts: float | None = None,
    timed: EventLog | None = None,
) -> Report:
    """Read a log as a report on a device.

    Seconds on a GPU are those of the kernels that run without the lever ``channels_last``, times
    its factors (``profiler.timing.lever_factors``). So a candidate with the lever is replayed once
    more without it, unless that replay is given.

    Args:
        candidate: the workload and its placement.
        log: its replay.
        device: the device to predict for.
        settings: settings of the CUDA caching allocator; None for those of `configuration`.
        power_limit_watts: power limit of the GPU; None for the board's own.
        timed: replay of the candidate without ``channels_last``; None to make it if it is needed.
    """
    workload = candidate.workload
    roofline = rates(device, workload, power_limit_watts=power_limit_watts)
    if timed is None:
        timed = _log_to_time(candidate, log, device)
    if device.is_cuda and not can_time(timed, workload, roofline):
        roofline = None
    notes: list[str] = []
    if device.is_cuda:
        log = log.rounded(BLOCK_BYTES)
        if settings is None:
            settings = AllocatorSettings.parse(configuration())
            notes.append(
                f"reserved bytes are those of {configuration()}, under which it is trained"
            )
        memory = cuda_memory(log, device, settings, notes)
        # Training evaluates micro-batches without gradients, loads tensor by tensor, and a resumed
        # run begins without state, so no stage needs more than a step; a rehearsal checks that.
        memory = replace(
            memory, run_peak_bytes=memory.device_bytes, host_bytes=_host_bytes(log, workload)
        )
    else:
        from profiler.device_rules.cpu_kernels import MAX_RUN_BYTES  # imports torch

        memory = host_memory(log)
        if any(op.moved_bytes > MAX_RUN_BYTES for op in log.operations):
            notes.append(
                f"operations on more than {format_bytes(MAX_RUN_BYTES)} were not run, so their "
                "temporary memory is extended from small batches or left out"
            )
    if device.memory_bytes is not None and (memory.device_bytes or 0) > device.memory_bytes:
        notes.append(
            f"it needs more than the {format_bytes(device.memory_bytes)} of {device.full_name}"
        )
    load, noted = None, len(notes)
    if roofline is not None:
        load = step_load(timed, roofline, workload)
        if any(op.launches > 1 for op in log.operations):
            notes.append("scans are timed as PyTorch's own loops; mamba_ssm's kernel takes less")
    cost = predicted_cost(load, roofline)
    if roofline is not None:
        interval = cost["step_seconds_interval"]
        notes.insert(noted, time_note(cost, f"{roofline.source}{_range_text(interval)}"))
    if cost["energy_joules"] is not None:
        notes.append("energy is that time at the predicted power")
    notes.extend(lever_notes(workload))
    notes.extend(method_notes(workload.replace(micro_batch=2, accumulation=1)))
    return Report(
        candidate=candidate,
        device=device_label(device.name),
        rung=Rung.REPLAYED,
        memory=memory,
        flops=step_flops(log, workload),
        **cost,
        parameters=count_parameters(workload),
        units=unit_reports(log, candidate, roofline, timed=timed),
        notes=tuple(notes),
    )


def _range_text(interval: ValueInterval | None) -> str:
    """Return the origin of the interval of a predicted time; an empty text without one."""
    if interval is None:
        return ""
    if interval.coverage is None:
        return "; the range of the time is an assumption"
    share = f"{100 * interval.coverage:.0f} %"
    return f"; such a range held {share} of the measurements that no fit had seen"


def can_time(log: EventLog, workload: Workload, roofline: Rates | None) -> bool:
    """Return whether the time of a step is known under the workload's levers.

    Args:
        log: replay of the workload without ``channels_last``.
        workload: the workload with its levers.
        roofline: rates of the workload; None if they are unknown.
    """
    if "channels_last" not in workload.levers or roofline is None:
        return roofline is not None
    unfitted = [op for op in log.operations if layout_class(op.kernel) == UNFITTED]
    share = roofline.total_seconds(unfitted) / roofline.total_seconds(log.operations)
    return is_layout_fitted(workload, unfitted_share=share)


def is_layout_fitted(workload: Workload, *, unfitted_share: float) -> bool:
    """Return whether the factors of ``channels_last`` hold for a workload with that lever.

    Args:
        workload: the workload.
        unfitted_share: share of the step's time that kernels without a factor take.
    """
    return workload.precision != "fp32" and unfitted_share < LARGEST_UNFITTED_SHARE


def _log_to_time(candidate: Candidate, log: EventLog, device: DeviceSpec) -> EventLog:
    """Return the log whose kernels are timed: one without ``channels_last`` on a GPU."""
    from profiler.replay.step_replay import replay_step

    levers = candidate.workload.levers
    if "channels_last" not in levers or not device.is_cuda:
        return log
    without = tuple(lever for lever in levers if lever != "channels_last")
    workload = candidate.workload.replace(levers=without)
    return replay_step(replace(candidate, workload=workload), device=device)


def lever_notes(workload: Workload) -> Iterator[str]:
    """Yield the limits of a prediction under a workload's levers."""
    if "channels_last" in workload.levers:
        yield (
            "channels_last: factors of kernels fitted to an RTX 3090 in fp16; no time is predicted "
            "in fp32, or with grouped convolutions"
        )
    if "compile" in workload.levers:
        yield (
            "time under torch.compile is not predicted, and the memory is that of the step without "
            "it; the first steps take minutes longer"
        )
    if "cudnn_benchmark" in workload.levers:
        yield (
            "the gain of cudnn.benchmark is not predicted; its workspaces are in comfortable_bytes "
            "where they are known, and it takes none that the memory cap does not allow"
        )


def host_memory(log: EventLog) -> Memory:
    """Return the memory of a log on a CPU: the live bytes of its allocator."""
    return Memory(
        peak_bytes=log.peak_bytes,
        reserved_bytes=None,
        device_bytes=log.peak_bytes,
        at_peak=log.owners_at(log.peak_tick),
        max_by_group=log.max_by_owner(),
    )


def cuda_memory(
    log: EventLog, device: DeviceSpec, settings: AllocatorSettings, notes: list[str]
) -> Memory:
    """Return the memory of a log on a CUDA device; notes on assumptions are appended.

    Args:
        log: a log whose sizes are rounded to the allocator's blocks.
        device: the device.
        settings: settings of the caching allocator.
        notes: list to append to.
    """
    workspaces = workspaces_of(device)
    if settings_of_workspaces := workspace_settings(device):
        notes.append(f"cuBLAS' workspaces are those of {', '.join(settings_of_workspaces)}")
    context = cuda_context(device)
    notes.append(context.note)
    workspaces_of_convolutions = comfortable_workspace_bytes(log)
    if any("convolution" in name for name in log.operation_names):
        notes.append(CONVOLUTION_NOTE)
    allocator, given = CachingAllocator(settings), log
    log = run_steps(allocator, given, steps=SIMULATED_STEPS, workspaces=workspaces)
    workspace = workspace_bytes(log, workspaces)
    reserved = allocator.peak_reserved_bytes
    cap = smallest_cap(settings, given, workspaces=workspaces, least_bytes=reserved)
    needed = cap + context.nbytes
    comfortable = None
    if workspaces_of_convolutions is not None:
        comfortable = needed + workspaces_of_convolutions
    at_peak, highest = log.owners_at(log.peak_tick), log.max_by_owner()
    return Memory(
        peak_bytes=log.peak_bytes + workspace,
        reserved_bytes=reserved,
        device_bytes=reserved + context.nbytes,
        needed_bytes=needed,
        comfortable_bytes=comfortable,
        at_peak=_with_temporary(at_peak, workspace),
        max_by_group=_with_temporary(highest, workspace),
    )


def _host_bytes(log: EventLog, workload: Workload) -> int:
    """Return the host's memory of a step; activations of a micro-batch are free after it."""
    copied = [op for op in log.operations if op.kernel == HostWork.TO_HOST]
    saved = page_locked_bytes(op.moved_bytes for op in copied if op.phase == Phase.RECOMPUTE)
    gradients = [op.moved_bytes for op in copied if op.phase == Phase.OPTIMIZER]
    return saved // min(workload.accumulation, 2) + host_state_bytes(gradients)


def _with_temporary(owners: OwnerBytes, extra: int) -> OwnerBytes:
    values = {name: getattr(owners, name) for name in OwnerBytes.__dataclass_fields__}
    return OwnerBytes(**(values | {"temporary": owners.temporary + extra}))


def step_flops(log: EventLog, workload: Workload) -> Flops:
    """Return the FLOPs of a whole optimizer step (a replay shows at most two micro-batches)."""
    shown = min(workload.accumulation, 2)
    times = workload.accumulation / shown
    return Flops(
        forward=round(log.flops(Phase.FORWARD) * times),
        backward=round(log.flops(Phase.BACKWARD) * times),
        recompute=round(log.flops(Phase.RECOMPUTE) * times),
        optimizer=log.flops(Phase.OPTIMIZER),
    )


def step_seconds(log: EventLog, roofline: Rates, workload: Workload) -> float:
    """Return the time of a whole optimizer step."""
    return roofline.step_cost(step_load(log, roofline, workload)).seconds


def step_load(log: EventLog, roofline: Rates, workload: Workload) -> Floats:
    """Return [LOAD_SUMS] the load of a whole optimizer step."""
    shown = min(workload.accumulation, 2)
    phases = (Phase.INPUT, Phase.FORWARD, Phase.BACKWARD, Phase.RECOMPUTE)
    each = roofline.load(op for op in log.operations if op.phase in phases)
    update_rates = roofline.for_update()
    update = update_rates.load(op for op in log.operations if op.phase == Phase.OPTIMIZER)
    return each * (workload.accumulation / shown) + update


def unit_reports(
    log: EventLog,
    candidate: Candidate,
    roofline: Rates | None,
    *,
    timed: EventLog | None = None,
) -> tuple[UnitReport, ...]:
    """Return one row per unit, of the first micro-batch.

    Args:
        log: log of the candidate, for bytes and FLOPs.
        candidate: its placement gives the decisions.
        roofline: rates of the device; None for no seconds.
        timed: log of the operations that are timed; None for the same log.
    """
    own = _by_unit(log)
    timed_own = own if timed is None else _by_unit(timed)
    shown = min(candidate.workload.accumulation, 2)
    live = log.live_bytes()
    forwards, backwards = first_spans(log, Phase.FORWARD), first_spans(log, Phase.BACKWARD)
    rows = []
    for index, name in enumerate(log.units):
        span, back_span = forwards.get(index), backwards.get(index)
        if span is None:
            continue
        working = None
        if back_span is not None:
            begin, end = back_span.begin, back_span.end
            working = int(live[begin : end + 1].max() - live[begin])
        rows.append(
            UnitReport(
                name=name,
                decision=candidate.placement.decision(name),
                stored_bytes=int(live[span.end] - live[span.begin]),
                boundary_bytes=log.boundary_bytes[index],
                working_bytes=working,
                forward_flops=_flops(own[index, Phase.FORWARD]) // shown,
                backward_flops=_flops(own[index, Phase.BACKWARD]) // shown,
                recompute_flops=_flops(own[index, Phase.RECOMPUTE]) // shown,
                forward_seconds=_mean_seconds(roofline, timed_own[index, Phase.FORWARD], shown),
                recompute_seconds=_mean_seconds(roofline, timed_own[index, Phase.RECOMPUTE], shown),
            )
        )
    return tuple(rows)


def _by_unit(log: EventLog) -> defaultdict[tuple[int, int], list[OperationRecord]]:
    """Return the operations of each unit and phase."""
    found: defaultdict[tuple[int, int], list[OperationRecord]] = defaultdict(list)
    for operation in log.operations:
        found[operation.unit, operation.phase].append(operation)
    return found


def _flops(operations: Sequence[OperationRecord]) -> int:
    return sum(operation.flops for operation in operations)


def _mean_seconds(
    roofline: Rates | None, operations: Sequence[OperationRecord], count: int
) -> float | None:
    return None if roofline is None else roofline.total_seconds(operations) / count
