"""Feeds a replayed step to the model of the caching allocator, several times in a row.

A replay yields live bytes. Reserved bytes depend on the allocator's free blocks. The free blocks
depend on the order of all mallocs and frees since the process began. The first step also allocates
the optimizer's state and the cuBLAS workspaces, and later steps reuse its segments. So the model
runs the start of a real training:

    setup     parameters, buffers
    step 1    all events of the step. The first matrix product of the forward and of the backward
              takes a cuBLAS workspace, which stays. The optimizer's state is allocated when the
              update begins
    step 2..  all events of the step, with state and workspaces in place
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from profiler.arrays import Ints
from profiler.device_rules.caching_allocator import CachingAllocator
from profiler.records import OWNERS
from profiler.replay.event_log import EventLog, Phase
from profiler.replay.unit_spans import phase_spans

_STATE = OWNERS.index("optimizer")

_MATRIX_PRODUCT = re.compile(r"aten\.(mm|addmm|bmm|baddbmm|_addmm_activation)\.")

BLOCK_BYTES = 512
"""The caching allocator's smallest block: kMinBlockSize, c10/cuda/CUDACachingAllocator.cpp."""


def run_steps(
    allocator: CachingAllocator, log: EventLog, *, steps: int, workspaces: Sequence[int] = ()
) -> EventLog:
    """Run steps on an allocator model.

    Args:
        allocator: the model; its peaks are those of the run afterwards.
        log: log of a steady step.
        steps: number of steps.
        workspaces: bytes of the cuBLAS workspaces of forward and backward, in this order; empty for
            none.

    Returns:
        The log of the last step, in which every storage has the size of its block.
    """
    granted: list[int] = log.nbytes.tolist()

    def allocate(storages: Ints) -> None:
        for index in storages.tolist():
            granted[index] = allocator.malloc(index, granted[index])

    # a steady log has the state from tick 0 on; here it is allocated by the first update
    resident = log.birth == 0
    births, deaths = log.birth.tolist(), log.death.tolist()
    is_state = log.owner == _STATE
    pending_state = np.flatnonzero(resident & is_state)
    none_pending = pending_state[:0]
    allocate(np.flatnonzero(resident & ~is_state))
    events = [event for event in log.allocator_events() if not resident[event[1]]]
    phases = phase_spans(log.marks, log.ticks)
    updates = [span.begin for span in phases if span.phase is Phase.OPTIMIZER]
    update = max(updates, default=log.ticks)
    workspace_after = _first_products(log, workspaces)
    for step in range(steps):
        alive: set[int] = set()
        for kind, key, nbytes in events:
            tick = births[key] if kind == "malloc" else deaths[key]
            if len(pending_state) and tick > update:
                allocate(pending_state)
                pending_state = none_pending
            if kind == "malloc":
                granted[key] = allocator.malloc(key, nbytes)
                if step == 0 and key in workspace_after:
                    allocator.malloc(*workspace_after[key])
                alive.add(key)
            else:
                allocator.free(key)
                alive.discard(key)
        # survivors of the step (the loss) are replaced by those of the next
        for key in alive:
            allocator.free(key)
        # an update without an event of its own still has its state
        allocate(pending_state)
        pending_state = none_pending
    return replace(log, nbytes=np.array(granted, dtype=np.int64))


def _first_products(log: EventLog, workspaces: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Return the workspaces by the storage after whose birth they are allocated.

    Returns:
        Storage index to (key, bytes) of the workspace. The storage is the result of the first
        matrix product of the forward or the backward; in a step without one, the first storage.
    """
    products = [i for i, name in enumerate(log.operation_names) if _MATRIX_PRODUCT.match(name)]
    is_product = np.isin(log.operation, products) & (log.birth > 0)
    back = (log.phase == Phase.BACKWARD) | (log.phase == Phase.RECOMPUTE)
    taken = {}
    for number, (nbytes, phases) in enumerate(zip(workspaces, (~back, back), strict=False), 1):
        found = np.flatnonzero(is_product & phases)
        at = found if len(found) else np.flatnonzero(log.birth > 0)
        # negative keys differ from all storage indices
        taken[int(at[np.argmin(log.birth[at])])] = (-number, nbytes)
    return taken
