"""Jobs: each question runs in a process of its own, and its answer is kept in its folder.

    ROOT/ID/question.json   the question
    ROOT/ID/answer.json     the answer, written when it is complete
    ROOT/ID/study.db        the study
    ROOT/ID/plans/          the plan files
    ROOT/ID/answer.html     the answer as a page

An answer is kept for ever, an error is not: the next question of the same content runs again.
A computation, such as a prediction, takes its turn among the questions, and nothing of it is kept.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from planner.disk.drafts import write_file
from planner.service.questions import (
    IS_ID,
    PAGE_FILE,
    AnswerText,
    QuestionInFolder,
    ServiceQuestion,
    answer_question,
)
from profiler.errors import BudgetplanError, MeasurementError, error_object
from profiler.running.sandbox import run_in_process

JobStatus = Literal["queued", "running", "done", "failed", "cancelled"]

QUESTION_SECONDS = 900.0
"""Time after which a question is stopped."""

SECONDS_BETWEEN_LOOKS = 0.1
"""Time between two looks at a job that a client waits for."""

_defects = logging.getLogger(__name__)


class BusyError(BudgetplanError):
    """Too many questions wait."""

    exit_code = 6
    kind = "busy"


@dataclass(slots=True, eq=False)
class Job:
    """A question and its progress.

    Attributes:
        id: id of the question.
        question: the question.
        status: state of the job.
        activity: current work.
        fraction: share of the present stage that is done.
        text: JSON text of the answer or of the error; empty before.
        cancelled: set to end the job.
    """

    id: str
    question: ServiceQuestion
    status: JobStatus = "queued"
    activity: str = ""
    fraction: float = 0.0
    text: str = ""
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def is_over(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in ("done", "failed", "cancelled")

    @property
    def answers(self) -> bool:
        """Whether the job has an answer or will have one; a cancelled one may still run."""
        is_on = self.status in ("queued", "running") and not self.cancelled.is_set()
        return is_on or self.status == "done"

    def to_json(self) -> dict[str, Any]:
        """Return the state for a client, without the answer."""
        return {
            "schema": "budgetplan.job/1",
            "id": self.id,
            "status": self.status,
            "activity": self.activity,
            "fraction": self.fraction,
        }


@dataclass(slots=True, eq=False)
class Computation:
    """A short computation for a client that waits for its result.

    Attributes:
        work: the computation; it ends early if the event that it gets is set.
        result: its answer or its error.
        cancelled: set to end the computation.
    """

    work: Callable[[threading.Event], AnswerText]
    result: Future[AnswerText] = field(default_factory=Future)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Compute the result, unless the client has gone."""
        if not self.result.set_running_or_notify_cancel():
            return
        try:
            self.result.set_result(self.work(self.cancelled))
        except Exception as error:  # the client gets it
            self.result.set_exception(error)


class Jobs:
    """Runs questions and computations, a few at once, in the order in which they came.

    Args:
        root: folder of all questions.
        at_once: number of questions and computations that run at the same time.
        most_waiting: number of questions and computations that may wait.
        page_writer: see ``QuestionInFolder``.
    """

    def __init__(
        self,
        root: Path,
        *,
        at_once: int = 1,
        most_waiting: int = 16,
        page_writer: str | None = None,
    ) -> None:
        self._page_writer = page_writer
        self._root, self._most_waiting = root, most_waiting
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job | Computation] = deque()
        self._computations: set[Computation] = set()
        self._change = threading.Condition()
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._work, daemon=True, name=f"question {number}")
            for number in range(at_once)
        ]
        for thread in self._threads:
            thread.start()

    def ask(self, question: ServiceQuestion) -> Job:
        """Return the job of a question: a stored answer, a running job, or a new one.

        Raises:
            BusyError: too many questions wait.
        """
        with self._change:
            found = self._find(question.id)
            if found is not None and found.answers:
                return found
            self._check_queue()
            job = Job(id=question.id, question=question)
            self._jobs[job.id] = job
            self._enqueue(job)
            return job

    async def compute(
        self, work: Callable[[threading.Event], AnswerText], *, most_seconds_in_queue: float
    ) -> AnswerText:
        """Run a computation in its turn; it ends if the calling task is cancelled.

        Args:
            work: see ``Computation``.
            most_seconds_in_queue: time after which a computation that has not started is given up.

        Raises:
            BusyError: too many questions wait, or the computation was given up.
        """
        asked = Computation(work)
        with self._change:
            self._check_queue()
            self._computations.add(asked)
            self._enqueue(asked)
        result = asyncio.wrap_future(asked.result)
        try:
            await asyncio.wait([result], timeout=most_seconds_in_queue)
            if asked.result.cancel():
                raise BusyError("other questions are being answered; ask again later")
            return await result
        finally:
            asked.cancelled.set()
            asked.result.cancel()
            result.cancel()
            with self._change:
                self._computations.discard(asked)
                if asked in self._waiting:
                    self._waiting.remove(asked)

    def get(self, job_id: str) -> Job | None:
        """Return the job with an id; None if there is none."""
        with self._change:
            return self._find(job_id)

    def cancel(self, job: Job) -> None:
        """End a job that is not over."""
        with self._change:
            job.cancelled.set()
            if job.status == "queued":
                self._waiting.remove(job)
                self._end(job, "cancelled", "")

    async def wait(
        self, job: Job, seconds: float, *, seen: tuple[str, float] | None = None
    ) -> None:
        """Wait until a job is over, or shows something else than ``seen``.

        The state is polled. A thread for each waiting client would leave none for other requests.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if job.is_over or (seen is not None and (job.activity, job.fraction) != seen):
                return
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)

    def close(self) -> None:
        """End all jobs and their processes."""
        with self._change:
            self._is_closed = True
            for job in self._jobs.values():
                job.cancelled.set()
            for asked in self._computations:
                asked.cancelled.set()
                asked.result.cancel()
            for waiting in self._waiting:
                if isinstance(waiting, Job):
                    self._end(waiting, "cancelled", "")
            self._waiting.clear()
            self._change.notify_all()
        for thread in self._threads:
            thread.join(timeout=10)

    def plan_text(self, job: Job, index: int) -> str | None:
        """Return the plan with an index of a job's answer, as JSON text; None if there is none."""
        if job.status != "done":
            return None
        front = json.loads(job.text)["front"]
        return json.dumps(front[index]) if 0 <= index < len(front) else None

    def page_text(self, job: Job) -> str | None:
        """Return the page of a job's answer; None if there is none."""
        if job.status != "done":
            return None
        try:
            return (self._root / job.id / PAGE_FILE).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None

    def _find(self, job_id: str) -> Job | None:
        if not IS_ID.fullmatch(job_id):
            return None
        if job_id not in self._jobs:
            folder = self._root / job_id
            try:
                question = msgspec.json.decode(
                    (folder / "question.json").read_bytes(), type=ServiceQuestion
                )
                text = (folder / "answer.json").read_text(encoding="utf-8")
            except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
                return None
            self._jobs[job_id] = Job(id=job_id, question=question, status="done", text=text)
        return self._jobs[job_id]

    def _check_queue(self) -> None:
        if len(self._waiting) >= self._most_waiting:
            raise BusyError(f"{self._most_waiting} questions wait already; ask again later")

    def _enqueue(self, item: Job | Computation) -> None:
        self._waiting.append(item)
        self._change.notify_all()

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting or self._is_closed)
                if self._is_closed:
                    return
                item = self._waiting.popleft()
                if isinstance(item, Job):
                    item.status = "running"
            if isinstance(item, Job):
                self._run(item)
            else:
                item.run()

    def _run(self, job: Job) -> None:
        def report(activity: str, fraction: float) -> None:
            with self._change:
                job.activity, job.fraction = activity, fraction
                self._change.notify_all()

        folder = self._root / job.id
        try:
            write_file(folder / "question.json", msgspec.json.encode(job.question))
            found = run_in_process(
                answer_question,
                QuestionInFolder(
                    question=job.question, folder=str(folder), page_writer=self._page_writer
                ),
                AnswerText,
                timeout_seconds=QUESTION_SECONDS,
                on_progress=report,
                cancelled=job.cancelled,
            )
            if not found.is_error:
                write_file(folder / "answer.json", found.answer.encode())
            status: JobStatus = "failed" if found.is_error else "done"
            text = found.answer
        except BudgetplanError as error:
            was_cancelled = job.cancelled.is_set() and isinstance(error, MeasurementError)
            status = "cancelled" if was_cancelled else "failed"
            text = "" if was_cancelled else json.dumps(error.to_json())
        except Exception as error:  # one question must not end the thread
            _defects.exception("question %s ended in a defect", job.id)
            status = "failed"
            text = json.dumps(error_object("internal", type(error).__name__, exit_code=1))
        with self._change:
            self._end(job, status, text)

    def _end(self, job: Job, status: JobStatus, text: str) -> None:
        job.status, job.text, job.fraction = status, text, 1.0
        self._change.notify_all()
