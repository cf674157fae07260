"""The queue of real runs beside a study: trials of a second study in the same storage.

    RunQueue       enqueues runs, claims them, stores their outcomes, and finds lost ones
    ClaimedRun     a run that this process has claimed
    RunState       status, worker and outcome of a run

A waiting run is a trial in the state WAITING with its order as a user attribute. A worker claims it
by Optuna's atomic change from WAITING to RUNNING, of which one process sees success. The outcome is
a user attribute too; then the trial becomes COMPLETE or FAIL.

    enqueue ──▶ WAITING ──claim──▶ RUNNING ──finish──▶ COMPLETE, or FAIL with an outcome
                   ▲                  │
                   └──── requeue ◀── FAIL without an outcome: the worker died, or gave it back

**Nothing is lost.** A worker sends heartbeats, the first one before its claim. A run whose worker
has sent none for a grace period fails and is queued again by the next process that looks
(``recover``). Databases keep the heartbeats in Optuna's own table. Journals and gRPC proxies have
none: there a heartbeat is a random text in the trial. A process that has seen the same text during
the grace period, by its own clock, takes the worker for dead. No clocks are compared.

**Nothing counts twice.** A worker that was taken for dead cannot store an outcome: its trial is
finished. ``recover`` runs under the lock of the runs, so that two processes do not queue a run
again. Where the lock fails (a gRPC proxy has none, and a server that restarts frees it), the later
of two trials of a run gives way to the older one when it is claimed. A trial that gave way is no
trial of the run any more: the oldest other trial that waits, runs or has an outcome decides the
run's state and whether it is queued again.

Every access is repeated for a while if the server does not answer, for example while it restarts.
A claim is not made from Optuna's list of waiting trials at each call, because reading that list
takes time in proportion to its length. A worker reads it once and claims from the oldest few at
random, which differ between workers.
"""

from __future__ import annotations

import copy
import random
import time
import uuid
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from planner.search.backends import Heartbeats, write_ahead
from planner.search.patience import (
    FIRST_PAUSE_SECONDS,
    PATIENCE_SECONDS,
    AnswerT,
    is_unreachable,
    patiently,
)
from planner.search.storage import storage_errors, unusable_storage
from planner.search.storage_url import sqlite_path
from planner.search.study_lock import StudyLock, opened_storage
from profiler.errors import BudgetplanError, InputError, UsageError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

HEARTBEAT_SECONDS = 60
"""Time between two heartbeats of a run."""

GRACE_RATIO = 3
"""Time without a heartbeat after which a worker counts as dead, in heartbeats."""

MOST_RETRIES = 5
"""Number of times that a run is queued again after the end of its worker."""

CLAIM_WINDOW = 16
"""Number of the oldest waiting runs from which a worker claims one at random."""

FAILED_CLAIMS = 8
"""Number of claims in a row that others were faster at, after which the list is read again."""

REFUSAL_SECONDS = 60.0
"""Time after which a worker looks again at a run that it refused: its images may have come."""

RUNS_SUFFIX = " runs"
"""End of the name of the study that holds the runs of a study."""

ORDER, KEY, OUTCOME, WORKER, BEAT = "order", "key", "outcome", "worker", "heartbeat"
"""User attributes of a run."""

REPEATED = "repeated"
"""Key in the outcome of a trial that was queued once too often."""

WITHDRAWN = "withdrawn"
"""Key in the outcome of a run that its client no longer waits for."""

RunStatus = Literal["waiting", "running", "done", "lost"]
"""``done`` has an outcome, of a success or an error; ``lost`` has none and is not queued again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedRun:
    """A run that this process has claimed.

    Attributes:
        trial_id: id of its trial in the storage.
        key: key of the run, the same for all its trials.
        order: the order, unchecked.
    """

    trial_id: int
    key: str
    order: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """The state of a run.

    Attributes:
        status: its state.
        worker: worker that has it, as text; empty before.
        outcome: the stored outcome, unchecked; None before.
    """

    status: RunStatus
    worker: str = ""
    outcome: Any = None


@dataclass(slots=True, eq=False)
class _WaitingList:
    """Waiting runs as this process last read them, the oldest first.

    Attributes:
        trials: the runs.
        failed_claims: number of claims in a row that others were faster at.
        refused: time of the last refusal of a run, by its trial, in seconds of the monotonic clock.
    """

    trials: list[FrozenTrial] = field(default_factory=list)
    failed_claims: int = 0
    refused: dict[int, float] = field(default_factory=dict)


class RunQueue:
    """The queue of real runs of a study.

    ``opened_queue`` opens it.

    Args:
        url: storage URL with its password, for messages, locks and the trainings of probes.
        study: the study that holds the runs.
        storage: its storage.
        heartbeat_seconds: time between two heartbeats.
        patience_seconds: time for which an access is repeated.
    """

    def __init__(
        self,
        url: str,
        study: Study,
        storage: BaseStorage,
        *,
        heartbeat_seconds: float,
        patience_seconds: float,
    ) -> None:
        self.url, self._study, self._storage = url, study, storage
        self.heartbeat_seconds = heartbeat_seconds
        self._patience_seconds = patience_seconds
        self._study_id = storage.get_study_id_from_name(study.study_name)
        self._has_heartbeats = hasattr(storage, "record_heartbeat")
        # SQLite has no SELECT FOR UPDATE: two claims could both read WAITING and write RUNNING
        self._claims_under_lock = sqlite_path(url) is not None
        self._list = _WaitingList()
        self._trial_ids: dict[str, int] = {}
        self._seen_beats: dict[int, tuple[object, float]] = {}

    # -- the client's side ---------------------------------------------------------------------

    def enqueue(self, order: Mapping[str, Any]) -> str:
        """Queue a run and return its key."""
        from optuna.trial import TrialState, create_trial

        key = uuid.uuid4().hex
        made = create_trial(state=TrialState.WAITING, user_attrs={KEY: key, ORDER: dict(order)})
        attempts = 0

        def add() -> int:
            nonlocal attempts
            attempts += 1
            if attempts > 1:  # the first attempt may have succeeded, and its answer was lost
                for trial in self._trials():
                    if trial.user_attrs.get(KEY) == key:
                        return trial._trial_id
            return self._storage.create_new_trial(self._study_id, template_trial=made)

        self._trial_ids[key] = self._patiently(add)
        return key

    def state(self, key: str) -> RunState:
        """Return the state of a run that this object has queued."""
        from optuna.trial import TrialState

        trial = self._patiently(lambda: self._storage.get_trial(self._trial_ids[key]))
        if _is_lost(trial) or _gave_way(trial):
            trial = self._counting_trial(key)
            self._trial_ids[key] = trial._trial_id
        worker = str(trial.user_attrs.get(WORKER, ""))
        if trial.state == TrialState.WAITING:
            return RunState(status="waiting")
        if trial.state == TrialState.RUNNING:
            return RunState(status="running", worker=worker)
        if not _is_unanswered(trial):
            return RunState(status="done", worker=worker, outcome=trial.user_attrs[OUTCOME])
        # between its failure and its return to the queue a run is still to come
        return RunState(status="waiting" if _may_return(trial) else "lost", worker=worker)

    def withdraw(self, keys: Collection[str]) -> None:
        """Take runs that are not over out of the queue; workers stop those that they run."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        for key in keys:
            while self.state(key).status in ("waiting", "running"):
                trial_id = self._trial_ids[key]

                def take_out(trial_id: int = trial_id) -> None:
                    self._storage.set_trial_user_attr(trial_id, OUTCOME, {WITHDRAWN: True})
                    self._storage.set_trial_state_values(trial_id, TrialState.FAIL)

                try:
                    self._patiently(take_out)
                except UpdateFinishedTrialError:  # it has just ended, or its worker has
                    self.recover()
                    time.sleep(FIRST_PAUSE_SECONDS)

    # -- the worker's side ---------------------------------------------------------------------

    def claim(self, accepts: Callable[[Any], bool], *, worker: str) -> ClaimedRun | None:
        """Claim the oldest waiting run that is accepted, or one of the next few.

        Args:
            accepts: returns whether this worker can run an order, which is unchecked.
            worker: description of the worker.

        Returns:
            The run; None if none waits that is accepted.
        """
        is_new = False
        while True:
            if not self._list.trials or self._list.failed_claims >= FAILED_CLAIMS:
                if is_new and not self._list.trials:
                    return None
                self._read_waiting()
                is_new = True
            trial = self._next_accepted(accepts)
            if trial is not None and self._take(trial, worker):
                self._list.failed_claims = 0
                return _claimed(trial)

    def claim_key(self, key: str, *, worker: str) -> ClaimedRun | None:
        """Claim a run that this object has queued; None if another process has it."""
        from optuna.trial import TrialState

        trial = self._patiently(lambda: self._storage.get_trial(self._trial_ids[key]))
        # A claim begins with a heartbeat. On a running trial that would be a sign of life of a
        # worker that may be dead, and the run would never be queued again.
        is_mine = trial.state == TrialState.WAITING and self._take(trial, worker)
        return _claimed(trial) if is_mine else None

    def beat(self, run: ClaimedRun) -> None:
        """Send a heartbeat of a run."""
        self._patiently(lambda: self._beat(run.trial_id))

    def has_running(self) -> bool:
        """Return whether any run is claimed; it may come back if its worker dies."""
        return bool(self._patiently(lambda: self._trials("RUNNING")))

    def is_mine(self, run: ClaimedRun) -> bool:
        """Return whether a claimed run is still wanted from this process."""
        trial = self._patiently(lambda: self._storage.get_trial(run.trial_id))
        return not trial.state.is_finished()

    def finish(self, run: ClaimedRun, outcome: Mapping[str, Any], *, value: float | None) -> bool:
        """Store the outcome of a claimed run.

        Args:
            run: the run.
            outcome: its outcome as plain data.
            value: number that the dashboard shows; None for a run that failed.

        Returns:
            Whether it counts: not if the run was withdrawn, or queued again in the meantime.
        """
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        values = None if value is None else [value]
        given = dict(outcome)

        def store() -> bool:
            try:
                self._storage.set_trial_user_attr(run.trial_id, OUTCOME, given)
                self._storage.set_trial_state_values(run.trial_id, state, values)
            except UpdateFinishedTrialError:  # or the answer to an earlier attempt was lost
                trial = self._storage.get_trial(run.trial_id)
                return trial.state == state and trial.user_attrs.get(OUTCOME) == given
            return True

        return self._patiently(store)

    def give_back(self, run: ClaimedRun) -> None:
        """Queue a claimed run again, because this process ends."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        try:
            self._patiently(
                lambda: self._storage.set_trial_state_values(run.trial_id, TrialState.FAIL)
            )
        except UpdateFinishedTrialError:
            return
        with self._locked():
            self._requeue_lost()

    def recover(self) -> None:
        """Queue the runs of dead workers again."""
        from optuna.exceptions import ExperimentalWarning
        from optuna.storages import fail_stale_trials

        with self._locked(), warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            if self._has_heartbeats:
                self._patiently(lambda: fail_stale_trials(self._study))
            else:
                self._patiently(self._fail_silent)
            self._requeue_lost()

    def counts(self) -> dict[str, int]:
        """Return the number of trials in each state, by its name in lower case."""
        found: dict[str, int] = {}
        for trial in self._patiently(self._trials):
            name = trial.state.name.lower()
            found[name] = found.get(name, 0) + 1
        return found

    # -- parts ---------------------------------------------------------------------------------

    def _trials(self, *states: str) -> list[FrozenTrial]:
        from optuna.trial import TrialState

        wanted = tuple(TrialState[name] for name in states) or None
        return self._storage.get_all_trials(self._study_id, deepcopy=False, states=wanted)

    def _read_waiting(self) -> None:
        trials = self._patiently(lambda: self._trials("WAITING"))
        refused = self._list.refused
        first = time.monotonic() - REFUSAL_SECONDS
        kept = [t for t in trials if refused.get(t._trial_id, first) <= first]
        self._list.trials, self._list.failed_claims = kept, 0

    def _next_accepted(self, accepts: Callable[[Any], bool]) -> FrozenTrial | None:
        """Take one of the oldest runs out of the list; None if it is not accepted."""
        waiting = self._list.trials
        if not waiting:
            return None
        trial = waiting.pop(random.randrange(min(CLAIM_WINDOW, len(waiting))))
        if accepts(trial.user_attrs.get(ORDER)):
            return trial
        self._list.refused[trial._trial_id] = time.monotonic()
        return None

    def _take(self, trial: FrozenTrial, worker: str) -> bool:
        """Change a trial from WAITING to RUNNING; return whether this process did it."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        def change() -> bool:
            try:
                # A worker that is killed right after its claim is found by this heartbeat.
                self._beat(trial._trial_id)
                return self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
            except UpdateFinishedTrialError:
                return False

        if self._claims_under_lock:
            with self._locked():
                is_mine = self._patiently(change)
        else:
            is_mine = self._patiently(change)
        if is_mine and "retry_history" in trial.system_attrs and self._is_repeated(trial):
            self.finish(_claimed(trial), {REPEATED: True}, value=None)
            return False
        if is_mine:
            self._patiently(
                lambda: self._storage.set_trial_user_attr(trial._trial_id, WORKER, worker)
            )
        else:
            self._list.failed_claims += 1
        return is_mine

    def _is_repeated(self, trial: FrozenTrial) -> bool:
        """Return whether an older trial of the same run is queued, runs, or has an outcome.

        A run is queued twice if the server restarts while its lock is held.
        """
        return self._counting_trial(trial.user_attrs.get(KEY)).number < trial.number

    def _counting_trial(self, key: object) -> FrozenTrial:
        """Return the trial that decides the state and the outcome of a run."""
        trials = self._patiently(self._trials)
        return _counting([trial for trial in trials if trial.user_attrs.get(KEY) == key])

    def _beat(self, trial_id: int) -> None:
        from optuna.exceptions import UpdateFinishedTrialError

        if self._has_heartbeats:
            record: Any = self._storage
            record.record_heartbeat(trial_id)
            return
        # if the run was taken from this worker, it finds out by itself
        with suppress(UpdateFinishedTrialError):
            self._storage.set_trial_user_attr(trial_id, BEAT, uuid.uuid4().hex)

    def _fail_silent(self) -> None:
        """Fail the runs whose heartbeat this process has seen unchanged for the grace period."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        grace_seconds, now = GRACE_RATIO * self.heartbeat_seconds, time.monotonic()
        running = {trial._trial_id: trial for trial in self._trials("RUNNING")}
        for trial_id, trial in running.items():
            beat = trial.user_attrs.get(BEAT)
            seen, since = self._seen_beats.get(trial_id, (None, now))
            if trial_id not in self._seen_beats or beat != seen:
                self._seen_beats[trial_id] = beat, now
            elif now - since > grace_seconds:
                try:
                    self._storage.set_trial_state_values(trial_id, TrialState.FAIL)
                except UpdateFinishedTrialError:
                    continue
        self._seen_beats = {i: s for i, s in self._seen_beats.items() if i in running}

    def _requeue_lost(self) -> None:
        """Queue again every run that no worker has and that has no outcome, under the lock."""
        failed = self._patiently(lambda: self._trials("FAIL"))
        if not any(map(_is_lost, failed)):  # the usual case: the others are not read
            return
        runs: dict[object, list[FrozenTrial]] = {}
        for trial in self._patiently(self._trials):
            runs.setdefault(trial.user_attrs.get(KEY), []).append(trial)
        for trial in map(_counting, runs.values()):
            if not (_is_lost(trial) and _may_return(trial)):
                continue
            try:
                queue_again(self._study, trial)
            except Exception as error:
                if not is_unreachable(error):
                    raise
                return  # the lock is lost with the connection; the next call goes on

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the runs; a connection of its own each time, since servers restart."""

        def taken() -> tuple[StudyLock, AbstractContextManager[None]]:
            lock = StudyLock(self.url, self._study.study_name)
            held = lock.held()
            held.__enter__()
            return lock, held

        lock, held = self._patiently(taken)
        with closing(lock):
            try:
                yield
            finally:
                try:
                    held.__exit__(None, None, None)
                except Exception as error:
                    if not is_unreachable(error):  # else it ended with its connection
                        raise

    def _patiently(self, action: Callable[[], AnswerT]) -> AnswerT:
        try:
            return patiently(action, seconds=self._patience_seconds)
        except KeyError as error:  # a record of the storage, or a key of ours
            if self._has_study():
                raise
            raise InputError(f"the study {self._study.study_name!r} was deleted") from error
        except Exception as error:
            if isinstance(error, BudgetplanError) or not is_unreachable(error):
                raise
            raise unusable_storage(self.url, error, self._study.study_name) from error

    def _has_study(self) -> bool:
        """Return whether the study of the runs is still in the storage."""
        try:
            self._storage.get_study_name_from_id(self._study_id)
        except KeyError:
            return False
        return True


@contextmanager
def opened_queue(
    url: str,
    study_name: str,
    *,
    heartbeat_seconds: int = HEARTBEAT_SECONDS,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Iterator[RunQueue]:
    """Open the queue of a study, which is created with it.

    Args:
        url: storage URL.
        study_name: name of the study whose runs are queued.
        heartbeat_seconds: time between two heartbeats; all processes of a queue use the same.
        patience_seconds: time for which an access is repeated while the server does not answer.

    Raises:
        InputError: the storage cannot be used.
    """
    import optuna

    if heartbeat_seconds < 1:
        raise UsageError(f"heartbeats are at least a second apart, got {heartbeat_seconds!r}")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    heartbeats = Heartbeats(
        interval_seconds=heartbeat_seconds,
        grace_seconds=GRACE_RATIO * heartbeat_seconds,
    )
    name = study_name + RUNS_SUFFIX
    lock = StudyLock(url, name)
    with closing(lock), opened_storage(url, name, lock, heartbeats=heartbeats) as storage:
        with lock.held(), storage_errors(url, name):
            write_ahead(storage, url)
            study = optuna.create_study(
                study_name=name, storage=storage, direction="minimize", load_if_exists=True
            )
        yield RunQueue(
            url,
            study,
            storage,
            heartbeat_seconds=heartbeat_seconds,
            patience_seconds=0.0 if sqlite_path(url) is not None else patience_seconds,
        )


def queue_again(study: Study, trial: FrozenTrial) -> None:
    """Append a waiting copy of a trial whose worker ended, by Optuna's own callback."""
    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import RetryHeartbeatStaleTrialCallback

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # the callback appends to the list of earlier trials, which may be a cached trial's
        RetryHeartbeatStaleTrialCallback(max_retry=MOST_RETRIES)(study, copy.deepcopy(trial))


def _claimed(trial: FrozenTrial) -> ClaimedRun:
    return ClaimedRun(
        trial_id=trial._trial_id,
        key=str(trial.user_attrs.get(KEY)),
        order=trial.user_attrs.get(ORDER),
    )


def _counting(trials: Sequence[FrozenTrial]) -> FrozenTrial:
    """Return the trial of a run that counts: the oldest that is not lost, else the last one.

    Args:
        trials: all trials of the run, oldest first.
    """
    # a trial gives way to an older one, so that one at least did not
    others = [trial for trial in trials if not _gave_way(trial)] or trials
    return next((trial for trial in others if not _is_lost(trial)), others[-1])


def _is_unanswered(trial: FrozenTrial) -> bool:
    return OUTCOME not in trial.user_attrs and KEY in trial.user_attrs


def _is_lost(trial: FrozenTrial) -> bool:
    """Return whether the worker of a trial ended without an outcome."""
    return trial.state.name == "FAIL" and _is_unanswered(trial)


def _gave_way(trial: FrozenTrial) -> bool:
    """Return whether a trial was queued once too often; an older one has the run."""
    return trial.user_attrs.get(OUTCOME) == {REPEATED: True}


def _may_return(trial: FrozenTrial) -> bool:
    return len(trial.system_attrs.get("retry_history", ())) < MOST_RETRIES
