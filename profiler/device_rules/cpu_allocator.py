"""What PyTorch's CPU allocator really did: its own memory events, from ``torch.profiler``.

This is the truth that replay is held against, and the measured peak of a run on a CPU.
Limitations: storages that were born before the recording are not in it (their bytes must be
added), and what a library allocates behind the allocator's back is not seen.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Kineto announces every start and stop on stderr unless told otherwise before its first use.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


@contextmanager
def _memory_only() -> Iterator[None]:
    """Keep operators out of a recording, which memory events do not need.

    A Vim-S step has millions, one a token: with them the recording of one took 19 GB.
    """
    import torch

    torch._C._autograd._enable_record_function(False)
    try:
        yield
    finally:
        torch._C._autograd._enable_record_function(True)


def memory_events(run: Callable[[], object]) -> list[int]:
    """Run a function and return the CPU allocator's events in order: +bytes, or -bytes freed."""
    from torch.profiler import ProfilerActivity, profile

    # `acc_events` only silences a warning of torch 2.11 about cycles, of which there is one
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
    """Return the highest live bytes during ``step``, counting what ``prepare`` left alive.

    Both run under one recording, so that nothing has to be added from other accounts. Storages
    that were born before ``prepare`` are not counted, so garbage is collected first: what died
    under the recording would be taken off.
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
