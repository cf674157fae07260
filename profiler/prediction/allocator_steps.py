"""Feeds a replayed step to the model of the caching allocator, several times in a row.

A replay yields live bytes. Reserved bytes depend on the allocator's free blocks. The free blocks
depend on the order of all mallocs and frees since the process began. The first step also allocates
the optimizer's state and the cuBLAS workspaces, and later steps reuse its segments. So the model
runs the start of a real training:

    setup     parameters, buffers
    step 1    all events of the step. The first matrix product of the forward and of the backward
              takes a cuBLAS workspace, which stays; so does the first product with a bias, if
              cuBLASLt has a workspace of its own. The optimizer's state is allocated when the
              update begins
    step 2..  all events of the step, with state and workspaces in place
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from profiler.arrays import Floats, Ints, Mask
from profiler.device_rules.caching_allocator import (
    AllocatorSettings,
    CachingAllocator,
    SimulatedOutOfMemory,
)
from profiler.device_rules.caching_allocator.sizes import SMALL_SEGMENT_BYTES, round_to_multiple
from profiler.devices.table import CUBLAS_HANDLES
from profiler.prediction.profile_records import UpdateProfile
from profiler.records import OWNERS
from profiler.replay.event_log import EventLog, Mark, MarkKind, Phase
from profiler.replay.unit_spans import phase_spans

_STATE, _GRADIENT = OWNERS.index("optimizer"), OWNERS.index("gradient")

_SUM = "aten.add.Tensor"

_MATRIX_PRODUCT = re.compile(r"aten\.(mm|addmm|bmm|baddbmm|_addmm_activation)\.")

_PRODUCT_WITH_BIAS = re.compile(r"aten\.(addmm|_addmm_activation)\.")
"""Products of cuBLASLt: ``addmm_out_cuda_impl``, aten/src/ATen/native/cuda/Blas.cpp."""

BLOCK_BYTES = 512
"""The caching allocator's smallest block: kMinBlockSize, c10/cuda/CUDACachingAllocator.cpp."""

SIMULATED_STEPS = 3
"""The optimizer's state is allocated in the first step; the third repeats the second."""


def run_steps(
    allocator: CachingAllocator, log: EventLog, *, steps: int, workspaces: Sequence[int] = ()
) -> EventLog:
    """Run steps on an allocator model.

    Args:
        allocator: the model; its peaks are those of the run afterwards.
        log: log of a steady step.
        steps: number of steps.
        workspaces: bytes of each workspace of ``profiler.devices.table.workspaces_of``; empty for
            none.

    Returns:
        The log of the last step, in which every storage has the size of its block.
    """
    nbytes: list[int] = log.nbytes.tolist()
    granted = nbytes.copy()

    def allocate(storages: Sequence[int]) -> None:
        for index in storages:
            granted[index] = allocator.malloc(index, nbytes[index])

    # a steady log has the state from tick 0 on; here it is allocated by the first update
    resident = log.birth == 0
    is_state = log.owner == _STATE
    pending_state = np.flatnonzero(resident & is_state).tolist()
    allocate(np.flatnonzero(resident & ~is_state).tolist())
    phases = phase_spans(log.marks, log.ticks)
    updates = [span.begin for span in phases if span.phase is Phase.OPTIMIZER]
    events, ticks = log.allocator_events(select=~resident)
    count = int(np.searchsorted(ticks, max(updates, default=log.ticks), side="right"))
    before, after = events[:count].tolist(), events[count:].tolist()
    survivors = np.flatnonzero(~resident & (log.death > log.ticks)).tolist()
    workspaces_after = _first_products(log, workspaces)
    malloc, free = allocator.malloc, allocator.free
    for step in range(steps):
        for part in (before, after):
            for key in part:  # this loop takes most of the time of a prediction
                if key < 0:
                    free(-1 - key)
                    continue
                granted[key] = malloc(key, nbytes[key])
                if step == 0 and key in workspaces_after:
                    for number, workspace in workspaces_after[key]:
                        if workspace:
                            malloc(number, workspace)
            if part is before:
                allocate(pending_state)
                pending_state = []
        # survivors of the step (the loss) are replaced by those of the next
        for key in survivors:
            free(key)
    return replace(log, nbytes=np.array(granted, dtype=np.int64))


def smallest_cap(
    settings: AllocatorSettings, log: EventLog, *, workspaces: Sequence[int], least_bytes: int
) -> int:
    """Return a cap under which the steps run: the reserved bytes, or as much more as they take.

    Under a cap (``set_per_process_memory_fraction``) the allocator refuses a block if the reserved
    bytes and the whole block exceed it, also where it has memory for a part of the block
    (``alloc_block``, c10/cuda/CUDACachingAllocator.cpp). So the reserved bytes of a run without a
    cap are not always enough.

    Args:
        settings: settings of the allocator.
        log: log of a steady step.
        workspaces: see ``run_steps``.
        least_bytes: reserved bytes without a cap.
    """
    cap_bytes = least_bytes
    while True:
        try:
            allocator = CachingAllocator(settings, limit_bytes=cap_bytes)
            run_steps(allocator, log, steps=SIMULATED_STEPS, workspaces=workspaces)
        except SimulatedOutOfMemory as error:
            wanted = round_to_multiple(
                error.reserved_bytes + error.requested_bytes, SMALL_SEGMENT_BYTES
            )
            cap_bytes = max(wanted, cap_bytes + SMALL_SEGMENT_BYTES)
        else:
            return cap_bytes


def accumulated_deaths(log: EventLog) -> Ints:
    """Return [storages] the tick of death if the storage were a gradient accumulated at once.

    When gradients exist already, autograd adds a new gradient to them (AccumulateGrad) and frees it
    before it runs the next operation. So the storage dies at the next birth by another operation.
    Additions do not count as the next operation: they sum the gradients of a tensor with several
    users, which autograd does before AccumulateGrad.
    """
    order = np.argsort(log.birth, kind="stable")
    birth, operation = log.birth[order], log.operation[order]
    sums = [code for code, name in enumerate(log.operation_names) if name == _SUM]
    is_next = ~np.isin(operation, sums)
    is_next[1:] &= operation[1:] != operation[:-1]
    is_next[:1] = False
    nexts = np.append(birth[is_next], log.ticks)
    position = np.cumsum(is_next)  # the first next operation behind each storage
    death = log.death.copy()
    death[order] = np.minimum(death[order], nexts[position])
    return death


def with_second_micro_batch(log: EventLog) -> EventLog:
    """Return the log of a step of two micro-batches, given that of one without an optimizer.

    Gradients of the first stay until the update. Those of the second are added to them.
    """
    again = np.flatnonzero(log.birth > 0)
    # Each tick becomes two, so that a gradient can die between two events.
    end, shift = 2 * log.ticks, 2 * (log.ticks - log.marks[0].tick)
    ticks = end + shift
    birth, death = 2 * log.birth, 2 * log.death
    survives = log.death > log.ticks
    first = np.where(survives, ticks + 1, death)
    is_added = survives & (log.owner == _GRADIENT)
    second = np.where(is_added, 2 * accumulated_deaths(log) - 1 + shift, first + shift)
    second[survives & ~is_added] = ticks + 1

    def twice(array: Ints) -> Ints:
        return np.concatenate([array, array[again]])

    marks = [mark._replace(tick=2 * mark.tick) for mark in log.marks]
    return replace(
        log,
        nbytes=twice(log.nbytes),
        birth=np.concatenate([birth, birth[again] + shift]),
        death=np.concatenate([first, second[again]]),
        owner=twice(log.owner),
        phase=twice(log.phase),
        unit=twice(log.unit),
        operation=twice(log.operation),
        reduction=twice(log.reduction),
        shapes=(),
        ticks=ticks,
        marks=(*marks, *(mark._replace(tick=mark.tick + shift) for mark in marks)),
    )


def with_update(log: EventLog, update: UpdateProfile, point: Floats) -> EventLog:
    """Return a step's log with the storages of an optimizer's update after it.

    Args:
        log: log of a step without an optimizer.
        update: profile of the update of the same parameters.
        point: [4] the monomials (``terms``).
    """
    nbytes = np.rint(update.sizes @ point).astype(np.int64)
    birth, death = update.spans.T
    ticks, end = log.ticks, log.ticks + int(update.ticks)
    count = len(nbytes)

    def joined(array: Ints, added: Ints | int) -> Ints:
        return np.concatenate([array, np.broadcast_to(added, count)]).astype(array.dtype)

    is_alive = log.death > ticks
    return replace(
        log,
        nbytes=joined(log.nbytes, nbytes),
        birth=joined(log.birth, np.where(birth == 0, 0, ticks + birth)),
        death=joined(np.where(is_alive, end + 1, log.death), ticks + death),
        owner=joined(log.owner, _STATE),
        phase=joined(log.phase, Phase.OPTIMIZER),
        unit=joined(log.unit, -1),
        operation=joined(log.operation, len(log.operation_names)),
        operation_names=(*log.operation_names, ""),
        reduction=joined(log.reduction, -1),
        shapes=log.shapes and (*log.shapes, *[()] * count),
        ticks=end,
        marks=(*log.marks, Mark(tick=ticks, kind=MarkKind.PHASE, value=Phase.OPTIMIZER)),
    )


def workspace_bytes(log: EventLog, workspaces: Sequence[int]) -> int:
    """Return the bytes of the workspaces that a step takes, in all."""
    taken = _first_products(log, workspaces).values()
    return sum(nbytes for workspaces_here in taken for _, nbytes in workspaces_here)


def _first_products(log: EventLog, workspaces: Sequence[int]) -> dict[int, list[tuple[int, int]]]:
    """Return the workspaces by the storage after whose birth they are allocated.

    Returns:
        Storage index to (key, bytes) of the workspaces. The storage is the result of the first
        matrix product of the forward or the backward; in a step without one, the first storage. A
        workspace of cuBLASLt is taken only if there is a product with a bias.
    """
    back = (log.phase == Phase.BACKWARD) | (log.phase == Phase.RECOMPUTE)
    product, with_bias = (_results_of(log, p) for p in (_MATRIX_PRODUCT, _PRODUCT_WITH_BIAS))
    of_workspace = (product & ~back, product & back, with_bias & ~back, with_bias & back)
    taken: dict[int, list[tuple[int, int]]] = {}
    for number, (nbytes, results) in enumerate(zip(workspaces, of_workspace, strict=False), 1):
        found = np.flatnonzero(results)
        if not len(found) and number > CUBLAS_HANDLES:
            continue
        at = found if len(found) else np.flatnonzero(log.birth > 0)
        # negative keys differ from all storage indices
        taken.setdefault(int(at[np.argmin(log.birth[at])]), []).append((-number, nbytes))
    return taken


def _results_of(log: EventLog, operations: re.Pattern[str]) -> Mask:
    """Return which storages are results of operations with a name."""
    named = [i for i, name in enumerate(log.operation_names) if operations.match(name)]
    return np.isin(log.operation, named) & (log.birth > 0)
