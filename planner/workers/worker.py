"""A worker: takes runs from the queue of a study that its device can run, until it is stopped.

    work          the loop
    perform_run   one claimed run, with its heartbeats

A run happens in a sandbox process that ends with the worker (``profiler.running.sandbox``), also if
the worker is killed. After SIGTERM or Ctrl-C the worker queues its run again and ends.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from planner.search.run_queue import ClaimedRun, RunQueue
from planner.workers.orders import AnyOrder, read_order
from planner.workers.outcomes import DefectError, Finished, error_outcome
from planner.workers.real_run import run_order
from planner.workers.run_device import RunDevice
from profiler.errors import BudgetplanError
from profiler.running.sandbox import Progress

IDLE_SECONDS = 2.0
"""Time between two looks into an empty queue."""

CHECK_SECONDS = 5.0
"""Time between two looks at whether a running run is still wanted."""


class RunFunction(Protocol):
    """Runs an order on a device of this machine."""

    def __call__(
        self,
        order: AnyOrder,
        *,
        device: str,
        storage: str,
        on_progress: Progress,
        cancelled: threading.Event | None = None,
    ) -> Finished:
        """Return the finished run, or raise its error."""


@dataclass(slots=True, kw_only=True)
class WorkSummary:
    """Counts of the runs of a worker.

    Attributes:
        done: number of runs with a result.
        failed: number of runs that ended in an error.
        dropped: number of runs whose outcome was no longer wanted.
    """

    done: int = 0
    failed: int = 0
    dropped: int = 0


def worker_name(device: RunDevice) -> str:
    """Return the description of this process in the queue."""
    return f"{device.name} on {socket.gethostname()}, process {os.getpid()}"


def work(
    queue: RunQueue,
    device: RunDevice,
    *,
    until_empty: bool,
    run: RunFunction = run_order,
    on_event: Callable[[str], None] = lambda text: None,
    idle_seconds: float = IDLE_SECONDS,
) -> WorkSummary:
    """Take runs from a queue until this process is interrupted.

    Args:
        queue: the queue.
        device: device of this machine.
        until_empty: whether to end once no run waits that this device can run, and none is
            claimed by others, which might return.
        run: function that runs an order.
        on_event: called with one line about each event.
        idle_seconds: time between two looks into an empty queue.

    Raises:
        InputError: the storage cannot be reached any more.
        KeyboardInterrupt: the worker was stopped; its run is queued again.
    """
    summary, name, said = WorkSummary(), worker_name(device), set[str]()

    def say_once(text: str) -> None:
        if text not in said:
            said.add(text)
            on_event(text)

    next_recovery = time.monotonic()
    while True:
        if time.monotonic() >= next_recovery:
            queue.recover()
            next_recovery = time.monotonic() + queue.heartbeat_seconds
        claimed = queue.claim(lambda order: _accepts(order, device, say_once), worker=name)
        if claimed is None:
            if until_empty and not queue.has_running():
                return summary
            time.sleep(idle_seconds)
            continue
        try:
            outcome = perform_run(queue, claimed, device, run=run, on_event=on_event)
        except BudgetplanError:
            raise
        except Exception:  # it is stored and announced; a defect of ours must not end the worker
            outcome = "failed"
        setattr(summary, outcome, getattr(summary, outcome) + 1)


def perform_run(
    queue: RunQueue,
    claimed: ClaimedRun,
    device: RunDevice,
    *,
    run: RunFunction = run_order,
    on_event: Callable[[str], None] = lambda text: None,
    on_progress: Progress = lambda text, fraction: None,
) -> str:
    """Run a claimed run and store its outcome; return the counter of ``WorkSummary`` for it.

    Raises:
        InputError: the storage cannot be reached any more.
        KeyboardInterrupt: the process was interrupted; the run is queued again.
        Exception: the run ended in an error that is no ``BudgetplanError``. It is stored as a
            `DefectError` and announced before.
    """
    began, is_over, cancelled = time.monotonic(), threading.Event(), threading.Event()
    beating = threading.Thread(
        target=_keep_alive, args=(queue, claimed, is_over, cancelled), daemon=True
    )
    beating.start()
    failure: BudgetplanError | None = None
    defect: Exception | None = None
    try:
        try:
            done = run(
                read_order(claimed.order),
                device=device.name,
                storage=queue.url,
                on_progress=on_progress,
                cancelled=cancelled,
            )
        except BudgetplanError as error:
            failure = error
        except Exception as error:
            failure = DefectError(
                f"internal error on {worker_name(device)}, please report it: "
                f"{type(error).__name__}: {error}"
            )
            defect = error
        seconds = time.monotonic() - began
        if failure is not None:
            counts = queue.finish(claimed, error_outcome(failure), value=None)
        else:
            outcome = done.to_json() | {"worker": worker_name(device)}
            counts = queue.finish(claimed, outcome, value=seconds)
    except KeyboardInterrupt:
        queue.give_back(claimed)
        raise
    finally:
        is_over.set()
    beating.join()
    text = "done" if failure is None else f"failed: {failure}"
    if not counts and defect is None:
        on_event(f"run {claimed.key[:8]}: no longer wanted")
        return "dropped"
    on_event(f"run {claimed.key[:8]}: {text} ({seconds:.1f} s)")
    if defect is not None:
        raise defect
    return "done" if failure is None else "failed"


def _keep_alive(
    queue: RunQueue, claimed: ClaimedRun, is_over: threading.Event, cancelled: threading.Event
) -> None:
    """Send heartbeats until the run is over; cancel it if it is no longer wanted."""
    step = min(CHECK_SECONDS, queue.heartbeat_seconds / 2)
    next_beat = time.monotonic() + queue.heartbeat_seconds
    while not is_over.wait(step):
        try:
            if time.monotonic() >= next_beat:
                queue.beat(claimed)
                next_beat = time.monotonic() + queue.heartbeat_seconds
            is_wanted = queue.is_mine(claimed)
        except BudgetplanError:  # the storage is gone for good
            is_wanted = False
        if not is_wanted:
            cancelled.set()
            return


def _accepts(data: object, device: RunDevice, on_event: Callable[[str], None]) -> bool:
    try:
        reason = device.why_not(read_order(data))
    except BudgetplanError as error:
        reason = str(error)
    if reason is not None:
        on_event(f"a run is left to others: {reason}")
    return reason is None
