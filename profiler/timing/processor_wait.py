"""Seconds that the threads of this process waited for a processor that others had.

On a machine that is busy all the time, repeated steps agree with each other and are all too long.
Linux counts for each thread how long it could run but did not (the second number of
``/proc/self/task/ID/schedstat``, in nanoseconds; Documentation/scheduler/sched-stats.rst). A step
on several threads can be longer by as much as its threads waited together.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

LARGEST_WAIT = 0.1
"""Share of a run's time that its threads may have waited, for a run that is kept."""

_TASKS = Path("/proc/self/task")


def waited_seconds() -> float | None:
    """Return the seconds that all threads have waited so far; None where nothing counts them.

    The seconds of a thread that has ended are no longer in it.
    """
    try:
        tasks = list(_TASKS.iterdir())
    except OSError:
        return None
    nanoseconds = []
    for task in tasks:
        with suppress(OSError, IndexError, ValueError):  # the thread may have ended
            nanoseconds.append(int((task / "schedstat").read_text().split()[1]))
    return sum(nanoseconds) / 1e9 if nanoseconds else None


def wait_share(before: float | None, after: float | None, *, seconds: float) -> float:
    """Return the share of a run's seconds that its threads waited; 0 where it is not known.

    Args:
        before: ``waited_seconds`` at the start of the run.
        after: ``waited_seconds`` at its end.
        seconds: seconds of the run.
    """
    if before is None or after is None or seconds <= 0:
        return 0.0
    return max(0.0, after - before) / seconds
