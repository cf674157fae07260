"""Parallel map over forked processes, one to a CPU core.

For replays: they are independent of each other, and each keeps one core busy. A forked process has
imported PyTorch, timm and peft already; importing them takes longer than several replays.
"""

from __future__ import annotations

import gc
import math
import os
import signal
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_all_start_methods, get_context
from typing import Any, TypeVar

from profiler.running.process_end import TERMINATION_SIGNALS, end_with_parent

Item = TypeVar("Item")
Result = TypeVar("Result")

LONGEST_CALL_SECONDS = 300.0
"""Time of a call, on average over the calls of a worker, after which the calls count as hung. A
replay takes half a minute at most. A thread that was lost in a fork can block a call for ever."""

_functions: list[Callable[[Any], Any]] = []
"""The function that a forked process calls. It is inherited by the fork, so it need not be
pickled, and may be a closure."""


def map_forked(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    on_done: Callable[[Item, float], None],
) -> dict[int, Result]:
    """Return ``function(item)`` by the index of the item.

    Items whose call failed or hangs are missing from the result, and so are all items if this
    process cannot be forked or has a single core. The caller computes missing items itself and gets
    their errors.

    Args:
        function: function to call with each item; its result is pickled.
        items: items, those with the longest calls first.
        on_done: called with (finished item, fraction done).
    """
    workers = min(len(items), len(os.sched_getaffinity(0)))
    if workers < 2 or not _can_fork():
        return {}
    results = {}
    # Without this, the first collection in a child would write to every imported object and so
    # copy its page.
    was_frozen = gc.get_freeze_count() > 0
    gc.freeze()
    pool = ProcessPoolExecutor(
        workers, get_context("fork"), initializer=_start_child, initargs=(function, os.getpid())
    )
    limit_seconds = LONGEST_CALL_SECONDS * math.ceil(len(items) / workers)
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns of a fork in a process with threads. The only threads here draw the
            # progress bar, and a child does not use them.
            warnings.simplefilter("ignore", DeprecationWarning)
            running = {pool.submit(_call, item): index for index, item in enumerate(items)}
        for done, future in enumerate(as_completed(running, limit_seconds), start=1):
            index = running[future]
            if future.exception() is None:
                results[index] = future.result()
            on_done(items[index], done / len(items))
    except TimeoutError:
        _kill_workers(pool)
    except BaseException:
        # A replay can take half a minute. After Ctrl-C or SIGTERM nobody waits for it.
        _kill_workers(pool)
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        if not was_frozen:
            gc.unfreeze()
    return results


def _kill_workers(pool: ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):
        process.kill()


def _start_child(function: Callable[[Any], Any], parent_pid: int) -> None:
    import torch

    end_with_parent(parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    for number in TERMINATION_SIGNALS:  # the parent's handlers would unwind a copy of its stack
        signal.signal(number, signal.SIG_DFL)
    # OpenMP's threads do not survive a fork; an operation on several threads would wait forever
    torch.set_num_threads(1)
    gc.set_threshold(50_000)  # a replay creates many objects and little garbage
    _functions[:] = [function]


def _call(item: Any) -> Any:
    return _functions[0](item)


def _can_fork() -> bool:
    """Return whether a forked child can work.

    A CUDA context does not survive a fork. Limitation: neither do autograd's threads, which start
    with the first backward; PyTorch offers no way to detect them, and the call in the child fails.
    """
    import torch

    return "fork" in get_all_start_methods() and not torch.cuda.is_initialized()
