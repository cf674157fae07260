"""The replayed rung: one replay of a candidate, read as bytes, FLOPs, seconds on a device."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, cast

import numpy as np

from profiler.allocator import AllocatorSettings, CachingAllocator, configuration
from profiler.event_log import BACKWARD, FORWARD, INPUT, OPTIMIZER, RECOMPUTE, EventLog
from profiler.hardware import (
    CPU,
    DeviceSpec,
    context_bytes,
    lookup,
    multiprocessors,
    workspaces_of,
)
from profiler.records import (
    OWNERS,
    REPLAYED,
    DeviceLabel,
    Flops,
    Memory,
    OwnerBytes,
    Parameters,
    Report,
    UnitReport,
)
from profiler.roofline import Rates, rates
from profiler.units import format_bytes
from profiler.workload import Candidate, Workload

if TYPE_CHECKING:
    from torch import Tensor, nn

_STATE = OWNERS.index("optimizer")
_PRODUCT = re.compile(r"aten\.(mm|addmm|bmm|baddbmm|_addmm_activation)\.")

BLOCK_BYTES = 512
"""The caching allocator's smallest block: kMinBlockSize, c10/cuda/CUDACachingAllocator.cpp."""


def device_spec(name: str) -> DeviceSpec:
    """Return the device to plan for: ``cpu`` or a name of the sourced table.

    Raises:
        UnknownNameError: no such device.
    """
    return CPU if name == "cpu" else lookup(name)


def device_label(name: str, note: str = "") -> DeviceLabel:
    """Return what a report says of its device."""
    spec = device_spec(name)
    return DeviceLabel(
        name=spec.name,
        full_name=spec.full_name,
        kind="cuda" if spec.is_cuda else "cpu",
        memory_bytes=spec.memory_bytes,
        note=note,
    )


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
    from profiler.kernels import TURING
    from profiler.replay import replay

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
        rung=REPLAYED,
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
    context, source = context_bytes(spec)
    notes.append(f"CUDA context {source.partition(':')[0]}")
    if any("convolution" in name for name in log.operation_names):
        notes.append("cuDNN picks convolution workspaces at run time; they are not included")
    allocator = CachingAllocator(settings)
    log = run_steps(allocator, log, steps=3, workspaces=workspaces)
    workspace = sum(workspaces)
    at_peak, highest = log.owners_at(log.peak_tick), log.max_by_owner()
    return Memory(
        peak_bytes=log.peak_bytes + workspace,
        reserved_bytes=allocator.peak_reserved_bytes,
        device_bytes=allocator.peak_reserved_bytes + context,
        at_peak=_with_temporary(at_peak, workspace),
        max_by_group=_with_temporary(highest, workspace),
    )


def _with_temporary(owners: OwnerBytes, extra: int) -> OwnerBytes:
    values = {name: getattr(owners, name) for name in OwnerBytes.__dataclass_fields__}
    return OwnerBytes(**(values | {"temporary": owners.temporary + extra}))


def run_steps(
    allocator: CachingAllocator, log: EventLog, *, steps: int, workspaces: Sequence[int] = ()
) -> EventLog:
    """Feed a log to an allocator several times: what is given stays, what a step makes goes.

    As in a training that begins, the first step makes the optimizer's state, and its first matrix
    products, forward and backward, take the workspaces.

    Args:
        allocator: its state goes on.
        log: of a steady step.
        steps: how many.
        workspaces: bytes of those of forward and backward, as far as there are any.

    Returns:
        The log of the last step, with the bytes of the block that every storage was given.
    """
    granted = log.nbytes.copy()
    given = np.flatnonzero(log.birth == 0)
    state = given[log.owner[given] == _STATE]
    events = [e for e in log.allocator_events() if log.birth[e[1]] > 0]
    updates = [m.tick for m in log.marks if m.kind == "phase" and m.value == OPTIMIZER]
    update = max(updates, default=log.ticks)
    once = _first_products(log, workspaces)
    for index in given.tolist():
        if log.owner[index] != _STATE:
            granted[index] = allocator.malloc(index, int(log.nbytes[index]))
    for step in range(steps):
        alive: set[int] = set()
        for kind, key, nbytes in events:
            tick = log.birth[key] if kind == "malloc" else log.death[key]
            if step == 0 and len(state) and tick > update:
                for index in state.tolist():
                    granted[index] = allocator.malloc(index, int(log.nbytes[index]))
                state = state[:0]
            if kind == "malloc":
                granted[key] = allocator.malloc(key, nbytes)
                if step == 0 and key in once:
                    allocator.malloc(*once[key])
                alive.add(key)
            else:
                allocator.free(key)
                alive.discard(key)
        for key in alive:
            allocator.free(key)
        for index in state.tolist():  # an update that needs nothing but its state
            granted[index] = allocator.malloc(index, int(log.nbytes[index]))
        state = state[:0]
    return replace(log, nbytes=granted)


def _first_products(log: EventLog, workspaces: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Return what each workspace is taken with: a matrix product's storage, by its index."""
    products = [i for i, name in enumerate(log.operation_names) if _PRODUCT.match(name)]
    is_product = np.isin(log.operation, products) & (log.birth > 0)
    back = (log.phase == BACKWARD) | (log.phase == RECOMPUTE)
    taken = {}
    for number, (nbytes, phases) in enumerate(zip(workspaces, (~back, back), strict=False), 1):
        found = np.flatnonzero(is_product & phases)
        at = found if len(found) else np.flatnonzero(log.birth > 0)
        taken[int(at[np.argmin(log.birth[at])])] = (-number, nbytes)
    return taken


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


class UnitSpan:
    """Ticks at which a unit runs in the first micro-batch."""

    __slots__ = ("backward", "enter", "exit")

    def __init__(self, enter: int) -> None:
        self.enter = enter
        self.exit = enter
        self.backward: tuple[int, int] | None = None


def unit_spans(log: EventLog) -> dict[int, UnitSpan]:
    """Return the first forward and the first backward of every unit that ran, by its index."""
    spans: dict[int, UnitSpan] = {}
    open_backward: int | None = None
    for mark in log.marks:
        ends_backward = mark.kind in {"backward", "phase"}
        if ends_backward and open_backward is not None:
            start, _ = spans[open_backward].backward or (mark.tick, 0)
            spans[open_backward].backward = (start, mark.tick)
            open_backward = None
        if mark.kind == "enter":
            spans.setdefault(mark.value, UnitSpan(mark.tick))
        elif mark.kind == "exit" and spans[mark.value].exit == spans[mark.value].enter:
            spans[mark.value].exit = mark.tick
        elif mark.kind == "backward" and spans[mark.value].backward is None:
            spans[mark.value].backward = (mark.tick, log.ticks)
            open_backward = mark.value
    return spans


def highest_by_unit(log: EventLog) -> dict[int, tuple[int, int]]:
    """Return the highest live bytes of each unit's forwards and backwards, by its index."""
    live = log.live_bytes()
    forward, backward = defaultdict[int, int](int), defaultdict[int, int](int)
    entered: dict[int, int] = {}
    running: tuple[int, int] | None = None
    for mark in log.marks:
        if running is not None and mark.kind in {"backward", "phase"}:
            unit, start = running
            backward[unit] = max(backward[unit], int(live[start : mark.tick + 1].max()))
            running = None
        if mark.kind == "enter":
            entered[mark.value] = mark.tick
        elif mark.kind == "exit" and mark.value in entered:
            start = entered.pop(mark.value)
            forward[mark.value] = max(forward[mark.value], int(live[start : mark.tick + 1].max()))
        elif mark.kind == "backward":
            running = mark.value, mark.tick
    if running is not None:
        unit, start = running
        backward[unit] = max(backward[unit], int(live[start:].max()))
    return {unit: (forward[unit], backward[unit]) for unit in forward if unit in backward}


@cache
def count_parameters(workload: Workload) -> Parameters:
    """Count a workload's parameters without allocating them."""
    from profiler.assembly import assemble

    model = assemble(workload.replace(micro_batch=1, accumulation=1), device="meta").model
    sizes = {
        id(parameter): (_elements(module, parameter), parameter.requires_grad)
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
    }
    return Parameters(
        total=sum(n for n, _ in sizes.values()),
        trainable=sum(n for n, learns in sizes.values() if learns),
    )


def _elements(module: nn.Module, parameter: Tensor) -> int:
    """Return the number of weights; a packed 4-bit weight holds two in a byte."""
    if parameter.is_floating_point():
        return parameter.numel()
    rows, columns = cast("tuple[int, int]", module.shape)
    return rows * columns
