"""Enqueues orders, waits for their outcomes, and runs them here if there are no workers.

A local run takes the same way as one of a worker: it is enqueued, claimed by this process, and its
outcome is read from the queue.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from planner.search.run_queue import RunQueue, opened_queue
from planner.workers.orders import Order
from planner.workers.outcomes import Finished, read_outcome
from planner.workers.run_device import RunDevice
from planner.workers.worker import perform_run, worker_name
from profiler.errors import BudgetplanError, MeasurementError
from profiler.running.sandbox import Progress

FinishedT = TypeVar("FinishedT", bound=Finished)

LOOK_SECONDS = 1.0
"""Time between two looks at the runs that workers have."""


class RunPool:
    """Runs orders on this machine or on workers.

    ``opened_pool`` opens it.

    Args:
        queue: the queue.
        device: device of this machine that runs the orders; None if workers do.
        at_once: number of orders that are enqueued at the same time.
    """

    def __init__(self, queue: RunQueue, *, device: RunDevice | None, at_once: int) -> None:
        self._queue, self._device, self.at_once = queue, device, at_once
        self._pending: list[str] = []
        self._next_recovery = 0.0

    @property
    def url(self) -> str:
        """Storage URL of the queue, with its password."""
        return self._queue.url

    def submit(self, order: Order) -> str:
        """Enqueue an order and return the key of its run."""
        key = self._queue.enqueue(order.to_json())
        self._pending.append(key)
        return key

    def next_finished(self, on_progress: Progress) -> tuple[str, Finished | BudgetplanError]:
        """Wait for a submitted run and return its key, with the run or its error.

        Args:
            on_progress: called with (activity, fraction of the run done).
        """
        while True:
            states = {key: self._queue.state(key) for key in self._pending}
            for key, state in states.items():
                if state.status == "done":
                    self._pending.remove(key)
                    return key, _readable_outcome(state.outcome)
                if state.status == "lost":
                    self._pending.remove(key)
                    return key, MeasurementError("each worker that ran it died during the run")
            if self._device is not None and self._run_here(on_progress):
                continue
            on_progress(_waiting_text([(s.status, s.worker) for s in states.values()]), 0.0)
            if time.monotonic() >= self._next_recovery:
                self._queue.recover()
                self._next_recovery = time.monotonic() + self._queue.heartbeat_seconds
            time.sleep(LOOK_SECONDS)

    def result_of(self, order: Order, kind: type[FinishedT], on_progress: Progress) -> FinishedT:
        """Run an order while no other is pending, and return its result.

        Args:
            order: the order.
            kind: type of the result.
            on_progress: called with (activity, fraction of the run done).

        Raises:
            BudgetplanError: the error of the run.
        """
        assert not self._pending
        self.submit(order)
        _, found = self.next_finished(on_progress)
        if isinstance(found, BudgetplanError):
            raise found
        if not isinstance(found, kind):
            raise MeasurementError("the outcome of the run is that of another kind of run")
        return found

    def _run_here(self, on_progress: Progress) -> bool:
        """Run the first order that nobody has; return whether there was one."""
        assert self._device is not None
        for key in self._pending:
            claimed = self._queue.claim_key(key, worker=worker_name(self._device))
            if claimed is not None:
                perform_run(self._queue, claimed, self._device, on_progress=on_progress)
                return True
        return False

    def withdraw(self) -> None:
        """Take all runs that are not over out of the queue."""
        self._queue.withdraw(self._pending)


@contextmanager
def opened_pool(
    url: str, study_name: str, *, device: RunDevice | None, at_once: int
) -> Iterator[RunPool]:
    """Open the queue of a study; runs that are not over at the end are withdrawn.

    Args:
        url: storage URL.
        study_name: name of the study.
        device: device of this machine that runs the orders; None if workers do.
        at_once: number of orders that are enqueued at the same time.
    """
    with opened_queue(url, study_name) as queue:
        pool = RunPool(queue, device=device, at_once=at_once)
        try:
            yield pool
        finally:
            pool.withdraw()


def run_by_worker(
    order: Order, kind: type[FinishedT], *, url: str, study_name: str, on_progress: Progress
) -> FinishedT:
    """Have one order run by a worker and return its result.

    Args:
        order: the order.
        kind: type of the result.
        url: storage URL.
        study_name: name of the study whose runs the workers take.
        on_progress: called with (activity, fraction of the run done).

    Raises:
        InputError: the storage cannot be used.
        BudgetplanError: the error of the run.
    """
    with opened_pool(url, study_name, device=None, at_once=1) as pool:
        return pool.result_of(order, kind, on_progress)


def _readable_outcome(outcome: object) -> Finished | BudgetplanError:
    try:
        return read_outcome(outcome)
    except BudgetplanError as error:
        return MeasurementError(f"the outcome of the run cannot be read: {error}")


def _waiting_text(states: list[tuple[str, str]]) -> str:
    counts = Counter(status for status, _ in states)
    running = [worker for status, worker in states if status == "running"]
    if running:
        more = "" if len(running) == 1 else f" and {len(running) - 1} more"
        return f"running ({running[0]}{more}), {counts['waiting']} waiting"
    return f"{counts['waiting']} waiting for a worker"
