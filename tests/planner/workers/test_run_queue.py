"""The queue of real runs on SQLite, a journal, a gRPC proxy and PostgreSQL."""

from __future__ import annotations

import os
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from planner.search.backends import new_storage
from planner.search.patience import is_unreachable
from planner.search.run_queue import MOST_RETRIES, ClaimedRun, RunQueue, _claimed, opened_queue
from profiler.errors import InputError
from tests.planner.full_database import full_database
from tests.planner.workers.postgres_server import PostgresServer, needed_programs
from tests.planner.workers.toy_runs import (
    SPAWN,
    counted_outcomes,
    logged,
    run_with_faults,
    serve_proxy,
    started_worker,
    toy_order,
    wait_until,
)

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    found = PostgresServer(needed_programs())
    yield found
    found.close()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a proxy, whose process imports Optuna for a second or two."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    storage = f"sqlite:///{tmp_path_factory.mktemp('proxy')}/runs.db"
    process = SPAWN.Process(target=serve_proxy, args=(storage, port, os.getpid()))
    process.start()
    try:
        address = f"grpc://127.0.0.1:{port}"
        waiting: Any = new_storage(address)
        waiting.wait_server_ready(timeout=60)
        waiting.close()
        yield address
    finally:
        process.kill()
        process.join()


@pytest.fixture(params=["sqlite", "journal", "grpc"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param != "grpc":
        yield f"{request.param}:///{tmp_path}/runs.db"
        return
    address = request.getfixturevalue("proxy")
    yield address
    storage: Any = new_storage(address)  # every test finds it empty
    for study in storage.get_all_studies():
        storage.delete_study(study._study_id)
    storage.close()


@pytest.fixture
def queue(url: str) -> Iterator[RunQueue]:
    with opened_queue(url, "toy", heartbeat_seconds=1) as found:
        yield found


def enqueue(queue: RunQueue, count: int) -> list[str]:
    return [queue.enqueue(toy_order(number).to_json()) for number in range(count)]


def everything(order: object) -> bool:
    return True


# ---- one process ---------------------------------------------------------------------------------


def test_a_run_goes_from_waiting_to_done(queue: RunQueue) -> None:
    (key,) = enqueue(queue, 1)
    assert queue.state(key).status == "waiting"
    run = queue.claim(everything, worker="me")
    assert run is not None and run.key == key and run.order == toy_order(0).to_json()
    assert queue.state(key).status == "running"
    assert queue.state(key).worker == "me"
    assert queue.claim(everything, worker="another") is None
    assert queue.claim_key(key, worker="another") is None
    assert queue.finish(run, {"number": 0}, value=1.5)
    assert queue.state(key).status == "done"
    assert queue.state(key).outcome == {"number": 0}
    assert not queue.finish(run, {"number": 1}, value=1.5), "a finished run is not changed"
    assert queue.state(key).outcome == {"number": 0}


def test_a_run_of_another_process_gets_no_sign_of_life(
    queue: RunQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    (key,) = enqueue(queue, 1)
    run = queue.claim(everything, worker="one that dies")
    assert run is not None
    beats: list[int] = []
    monkeypatch.setattr(queue, "_beat", beats.append)
    assert queue.claim_key(key, worker="one that waits") is None
    assert beats == []


def test_an_answer_of_a_proxy_is_not_waited_for() -> None:
    from grpc import RpcError  # type: ignore[import-untyped]
    from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError

    for error in (UpdateFinishedTrialError(), KeyError("no such trial")):
        error.__cause__ = RpcError()
        assert not is_unreachable(error)
    assert is_unreachable(RpcError())
    assert is_unreachable(StorageInternalError())


@pytest.mark.parametrize(
    ("name", "invalidated", "waits"),
    [
        ("OperationalError", False, True),  # the server restarts
        ("InterfaceError", False, True),
        ("InternalError", True, True),
        ("InternalError", False, False),
        ("DataError", False, False),  # a value that is too long
        ("ProgrammingError", False, False),  # no such table
        ("IntegrityError", False, False),
    ],
)
def test_a_database_that_refuses_a_statement_has_answered(
    name: str, invalidated: bool, waits: bool
) -> None:
    import sqlalchemy.exc
    from optuna.exceptions import StorageInternalError

    kind = getattr(sqlalchemy.exc, name)
    error = kind("INSERT", {}, Exception("driver"), connection_invalidated=invalidated)
    assert is_unreachable(error) == waits
    by_optuna, by_us = StorageInternalError("commit"), InputError("storage")
    by_optuna.__cause__, by_us.__cause__ = error, by_optuna
    assert is_unreachable(by_optuna) == waits
    assert is_unreachable(by_us) == waits


def test_a_full_database_is_one_line_and_keeps_its_runs(tmp_path: Path) -> None:
    with opened_queue(f"sqlite:///{tmp_path}/runs.db", "toy", heartbeat_seconds=1) as queue:
        key, _ = enqueue(queue, 2)
        with full_database(), pytest.raises(InputError, match="is full") as caught:
            enqueue(queue, 100)
        assert "\n" not in str(caught.value)
        before = queue.counts()["waiting"]
        assert 2 <= before < 102
        run = queue.claim_key(key, worker="me")
        assert run is not None and run.order == toy_order(0).to_json()
        with full_database(), pytest.raises(InputError, match="is full"):
            queue.finish(run, {"text": "x" * 10**6}, value=1.0)
        assert queue.state(key).status == "running", "an outcome that was not written is none"
        assert queue.finish(run, {"number": 0}, value=1.0)
        assert queue.counts() == {"waiting": before - 1, "complete": 1}


def test_waiting_for_a_pooled_connection_is_waiting_for_the_server() -> None:
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import TimeoutError as PoolTimeoutError

    error = StorageInternalError("commit")
    error.__cause__ = PoolTimeoutError()
    assert is_unreachable(error)


def test_what_is_not_accepted_stays(queue: RunQueue) -> None:
    keys = enqueue(queue, 40)
    got = queue.claim(lambda order: order["seed"] == 33, worker="me")
    assert got is not None and got.key == keys[33]
    assert queue.claim(lambda order: order["seed"] == 33, worker="me") is None
    assert queue.counts() == {"waiting": 39, "running": 1}


def test_a_run_that_is_given_back_is_taken_again(queue: RunQueue) -> None:
    (key,) = enqueue(queue, 1)
    for _ in range(MOST_RETRIES):
        run = queue.claim(everything, worker="me")
        assert run is not None
        queue.give_back(run)
        assert queue.state(key).status == "waiting"
        assert not queue.finish(run, {"number": 0}, value=1.0)
    run = queue.claim(everything, worker="me")
    assert run is not None
    queue.give_back(run)
    assert queue.claim(everything, worker="me") is None
    assert queue.state(key).status == "lost"


def test_a_withdrawn_run_is_not_taken_and_its_outcome_does_not_count(queue: RunQueue) -> None:
    keys = enqueue(queue, 2)
    run = queue.claim_key(keys[0], worker="me")
    assert run is not None and queue.is_mine(run)
    queue.withdraw(keys)
    assert not queue.is_mine(run)
    assert not queue.finish(run, {"number": 0}, value=1.0)
    assert queue.claim(everything, worker="me") is None
    queue.recover()
    assert queue.counts() == {"fail": 2}


def test_a_run_between_its_failure_and_its_return_is_withdrawn(queue: RunQueue) -> None:
    from optuna.trial import TrialState

    (key,) = enqueue(queue, 1)
    run = queue.claim(everything, worker="me")
    assert run is not None
    queue._storage.set_trial_state_values(run.trial_id, TrialState.FAIL)  # then it is killed
    queue.withdraw([key])
    assert queue.claim(everything, worker="another") is None


def test_a_run_that_was_queued_once_too_often_is_run_once(queue: RunQueue) -> None:
    from planner.search.run_queue import queue_again

    (key,) = enqueue(queue, 1)
    run = queue.claim(everything, worker="me")
    assert run is not None
    queue.give_back(run)
    queue_again(queue._study, queue._study.trials[0])  # by a process that lost its lock
    first = queue.claim_key(key, worker="me")
    claims = [first, queue.claim(everything, worker="another")]
    assert [claim.key for claim in claims if claim is not None] == [key]
    queue.recover()
    assert queue.claim(everything, worker="me") is None
    mine = next(claim for claim in claims if claim is not None)
    assert queue.finish(mine, {"number": 0}, value=1.0)
    assert queue.state(key).status == "done"
    assert counted_outcomes(queue) == Counter([0])


def queued_twice(queue: RunQueue) -> str:
    """Queue a run that two waiting trials stand for; return its key."""
    from planner.search.run_queue import queue_again

    (key,) = enqueue(queue, 1)
    run = queue.claim(everything, worker="one that ends")
    assert run is not None
    queue.give_back(run)
    queue_again(queue._study, queue._study.trials[0])  # by a process that lost its lock
    assert queue.counts() == {"fail": 1, "waiting": 2}
    return key


def claim_number(queue: RunQueue, number: int) -> ClaimedRun | None:
    """Claim one trial of the queue, if it is not one too many."""
    trial = queue._study.trials[number]
    return _claimed(trial) if queue._take(trial, "worker") else None


@pytest.mark.parametrize("points_at_copy", [True, False])
def test_the_outcome_of_a_run_is_never_that_of_its_copy(
    queue: RunQueue, points_at_copy: bool
) -> None:
    key = queued_twice(queue)
    if points_at_copy:
        queue._trial_ids[key] = queue._study.trials[2]._trial_id
    run = claim_number(queue, 1)
    assert run is not None
    assert claim_number(queue, 2) is None
    assert queue.counts() == {"fail": 2, "running": 1}
    assert queue.state(key).status == "running"
    assert queue.finish(run, {"number": 0}, value=1.0)
    assert queue.state(key).outcome == {"number": 0}
    assert queue.counts() == {"fail": 2, "complete": 1}


def test_a_run_comes_back_after_its_copy_has_given_way(queue: RunQueue) -> None:
    key = queued_twice(queue)
    for number in (1, 3):  # trial 3 comes back in place of trial 1
        run = claim_number(queue, number)
        assert run is not None
        assert number == 3 or claim_number(queue, 2) is None
        queue.give_back(run)
        queue.recover()
        assert queue.state(key).status == "waiting"
        assert queue.counts()["waiting"] == 1
    run = queue.claim(everything, worker="another")
    assert run is not None
    assert queue.finish(run, {"number": 0}, value=1.0)
    assert queue.state(key).outcome == {"number": 0}
    assert counted_outcomes(queue) == Counter([0])


def test_a_copy_that_gives_way_after_a_later_one_was_lost_loses_nothing(queue: RunQueue) -> None:
    """A worker dies between its claim of a copy and the copy's outcome."""
    from optuna.trial import TrialState

    key = queued_twice(queue)
    run = claim_number(queue, 1)
    copy = queue._study.trials[2]._trial_id
    assert queue._storage.set_trial_state_values(copy, TrialState.RUNNING)
    queue._storage.set_trial_state_values(copy, TrialState.FAIL)
    queue.recover()
    assert run is not None
    assert queue.counts() == {"fail": 2, "running": 1}, "the run has a worker"
    queue.give_back(run)
    assert queue.counts() == {"fail": 3, "waiting": 1}
    assert queue.state(key).status == "waiting"


@pytest.mark.timeout(60)
def test_a_run_with_a_copy_that_gave_way_is_withdrawn(queue: RunQueue) -> None:
    from optuna.trial import TrialState

    key = queued_twice(queue)
    run = claim_number(queue, 1)
    assert run is not None
    assert claim_number(queue, 2) is None
    queue._storage.set_trial_state_values(run.trial_id, TrialState.FAIL)  # then it is killed
    queue.withdraw([key])
    assert queue.claim(everything, worker="another") is None
    assert "waiting" not in queue.counts()


# ---- workers -------------------------------------------------------------------------------------


def test_workers_share_the_runs_and_replace_a_killed_one(
    url: str, queue: RunQueue, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    keys = enqueue(queue, 8)
    workers = [started_worker(url, "toy", log, 0.3) for _ in range(3)]
    wait_until(lambda: len(logged(log, "began")) >= 2)
    workers[0].kill()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL, 0, 0]
    assert {queue.state(key).status for key in keys} == {"done"}
    assert counted_outcomes(queue) == Counter(range(8))
    assert logged(log, "ended") == Counter(range(8))


def test_a_terminated_worker_gives_its_run_back(url: str, queue: RunQueue, tmp_path: Path) -> None:
    log = tmp_path / "log"
    (key,) = enqueue(queue, 1)
    first = started_worker(url, "toy", log, 60.0)
    wait_until(lambda: logged(log, "began"))
    assert first.pid is not None
    os.kill(first.pid, signal.SIGTERM)
    first.join(30)
    assert queue.state(key).status == "waiting"
    second = started_worker(url, "toy", log, 0.0)
    second.join(60)
    assert queue.state(key).status == "done"


def test_a_worker_stops_a_run_that_is_withdrawn(url: str, queue: RunQueue, tmp_path: Path) -> None:
    log = tmp_path / "log"
    (key,) = enqueue(queue, 1)
    worker = started_worker(url, "toy", log, 60.0)
    wait_until(lambda: logged(log, "began"))
    queue.withdraw([key])
    worker.join(30)
    assert worker.exitcode == 0
    assert counted_outcomes(queue) == Counter()


# ---- PostgreSQL ----------------------------------------------------------------------------------


@pytest.mark.parametrize("repetition", range(int(os.environ.get("QUEUE_REPETITIONS", "1"))))
def test_nothing_is_lost_and_nothing_counts_twice(
    server: PostgresServer, tmp_path: Path, repetition: int
) -> None:
    """Four workers, one killed by SIGKILL, the database restarted."""
    found = run_with_faults(server, f"study {repetition}", tmp_path / "log", runs=16)
    assert found["exit_codes"] == [-signal.SIGKILL, 0, 0, 0]
    assert found["done"] == 16
    assert found["outcomes"] == Counter(range(16))


def test_a_missing_server_is_one_line_without_the_password(server: PostgresServer) -> None:
    away = server.url.rpartition(":")[0] + ":9/runs"
    with pytest.raises(InputError) as caught, opened_queue(away, "toy"):
        pass
    assert "secret" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("journal://runs.log", "whole path"),
        ("journal:////nowhere/at/all/runs.log", "does not exist"),
        ("grpc://host", "grpc://HOST:PORT"),
        ("grpc://host:port", "grpc://HOST:PORT"),
    ],
)
def test_a_wrong_address_is_one_line(url: str, text: str) -> None:
    with pytest.raises(InputError, match=text), opened_queue(url, "toy"):
        pass


def test_a_study_that_was_deleted_under_a_worker_is_said(queue: RunQueue) -> None:
    (key,) = enqueue(queue, 1)
    queue._storage.delete_study(queue._study._study_id)
    # what reads all runs at once may also find none
    with pytest.raises(InputError, match="was deleted"):
        queue.claim(everything, worker="me")
        queue.state(key)
