"""Memory events of PyTorch's CPU allocator, recorded by ``torch.profiler``.

The measured peak of a run on a CPU comes from these events; replays are compared with it.

Limitations. Storages that were allocated before the recording are not in it, so their bytes must be
added. Memory that a library allocates without PyTorch's allocator is not recorded.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Kineto prints every start and stop to stderr unless this is set before its first use.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


@contextmanager
def _memory_only() -> Iterator[None]:
    """Leave operators out of a recording, because memory events do not need them.

    A Vim-S step calls millions of operators. With them, recording a step took 19 GB.
    """
    import torch

    torch._C._autograd._enable_record_function(False)
    try:
        yield
    finally:
        torch._C._autograd._enable_record_function(True)


def memory_events(run: Callable[[], object]) -> list[int]:
    """Run a function and return the CPU allocator's events in order.

    Returns:
        Bytes of each allocation, and minus the bytes of each free.
    """
    from torch.profiler import ProfilerActivity, profile

    # There is only one profiling cycle, so `acc_events` changes nothing but prevents a warning.
    with (
        profile(
            activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
        ) as recording,
        _memory_only(),
    ):
        run()
    results = recording.profiler.kineto_results
    events = [
        (event.start_ns(), event.nbytes())
        for event in results.events()
        if event.name() == "[memory]" and event.device_type().name == "CPU"
    ]
    events.sort(key=lambda event: event[0])
    return [nbytes for _, nbytes in events]


def peak_and_growth(events: list[int]) -> tuple[int, int]:
    """Return (highest, final) live bytes above the level at the start."""
    live = peak = 0
    for nbytes in events:
        live += nbytes
        peak = max(peak, live)
    return peak, live


def peak_during(prepare: Callable[[], object], step: Callable[[], object]) -> int:
    """Return the highest live bytes during ``step``, storages that ``prepare`` left alive included.

    Both functions run under one recording, so all allocations since ``prepare`` are counted.
    Storages from before are not counted, but their frees would be subtracted. So garbage is
    collected first.
    """
    from torch.profiler import ProfilerActivity, profile, record_function

    gc.collect()
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as recording:
        with _memory_only():
            prepare()
        with record_function("budgetplan.step"), _memory_only():
            step()
    events = recording.profiler.kineto_results.events()
    window = next(e for e in events if e.name() == "budgetplan.step")
    changes = [
        (e.start_ns(), e.nbytes())
        for e in events
        if e.name() == "[memory]" and e.device_type().name == "CPU"
    ]
    changes.sort(key=lambda change: change[0])
    live = peak = 0
    for moment, nbytes in changes:
        if moment > window.end_ns():
            break
        before, live = live, live + nbytes
        if moment >= window.start_ns():
            peak = max(peak, before, live)
    return peak
