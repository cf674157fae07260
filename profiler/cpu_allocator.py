"""What PyTorch's CPU allocator really did: its own memory events, from ``torch.profiler``.

This is the truth that replay is held against, and the measured peak of a run on a CPU.
Limitations: storages that were born before the recording are not in it (their bytes must be
added), and what a library allocates behind the allocator's back is not seen.
"""

from __future__ import annotations

import os
from collections.abc import Callable

# Kineto announces every start and stop on stderr unless told otherwise before its first use.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def memory_events(run: Callable[[], object]) -> list[int]:
    """Run a function and return the CPU allocator's events in order: +bytes, or -bytes freed."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recording:
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
