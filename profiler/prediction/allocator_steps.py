"""Feeds a replayed step to the model of the caching allocator, several times in a row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from profiler.device_rules.caching_allocator import (
    CachingAllocator,
)
from profiler.records import (
    OWNERS,
)
from profiler.replay.event_log import EventLog, Phase
from profiler.replay.unit_spans import phase_spans

_STATE = OWNERS.index("optimizer")

_PRODUCT = re.compile(r"aten\.(mm|addmm|bmm|baddbmm|_addmm_activation)\.")

BLOCK_BYTES = 512
"""The caching allocator's smallest block: kMinBlockSize, c10/cuda/CUDACachingAllocator.cpp."""


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
    phases = phase_spans(log.marks, log.ticks)
    updates = [span.begin for span in phases if span.phase is Phase.OPTIMIZER]
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
    back = (log.phase == Phase.BACKWARD) | (log.phase == Phase.RECOMPUTE)
    taken = {}
    for number, (nbytes, phases) in enumerate(zip(workspaces, (~back, back), strict=False), 1):
        found = np.flatnonzero(is_product & phases)
        at = found if len(found) else np.flatnonzero(log.birth > 0)
        taken[int(at[np.argmin(log.birth[at])])] = (-number, nbytes)
    return taken
