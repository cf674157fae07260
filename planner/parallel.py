"""Call a function on many items in forked processes, one to a core.

For replays, which do not depend on each other and keep one core busy each. A forked process has
PyTorch, timm and peft already: importing them takes longer than many replays.
"""

from __future__ import annotations

import gc
import os
import signal
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_all_start_methods, get_context
from typing import Any, TypeVar

T = TypeVar("T")

R = TypeVar("R")

_functions: list[Callable[[Any], Any]] = []
"""In a forked process, what it calls: inherited, so that it need not be pickled."""


def forked(
    function: Callable[[T], R], items: Sequence[T], on_done: Callable[[T, float], None]
) -> dict[int, R]:
    """Return the results by the item's index; what failed, or could not be forked, is left out.

    The caller works out what is missing by itself, and meets the error there.

    Args:
        function: of one item; its results are pickled.
        items: the longest work first.
        on_done: called with (an item that is done, fraction done).
    """
    workers = min(len(items), len(os.sched_getaffinity(0)))
    if workers < 2 or not _can_fork():
        return {}
    results = {}
    gc.freeze()  # a collection in a forked process would copy every page of what was imported
    pool = ProcessPoolExecutor(
        workers, get_context("fork"), initializer=_begin, initargs=(function,)
    )
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns of threads: ours draw the progress bar, and replays use none
            warnings.simplefilter("ignore", DeprecationWarning)
            running = {pool.submit(_call, item): index for index, item in enumerate(items)}
        for done, future in enumerate(as_completed(running), start=1):
            index = running[future]
            if future.exception() is None:
                results[index] = future.result()
            on_done(items[index], done / len(items))
    finally:
        pool.shutdown(cancel_futures=True)
        gc.unfreeze()
    return results


def _begin(function: Callable[[Any], Any]) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    torch.set_num_threads(1)  # OpenMP's threads are not there after a fork, and waited for
    gc.set_threshold(50_000)  # a replay makes many objects and little garbage
    _functions[:] = [function]


def _call(item: Any) -> Any:
    return _functions[0](item)


def _can_fork() -> bool:
    import torch

    # CUDA does not survive a fork; nor do autograd's threads, which PyTorch says only in backward
    return "fork" in get_all_start_methods() and not torch.cuda.is_initialized()
