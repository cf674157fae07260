"""Several processes on one study, a killed one, a full disk, and a study without points left."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from toy_costs import MB, ToyCosts

from planner.search.probe_storage import append_probe_run, read_probe_runs
from planner.search.problem import SearchProblem, SearchResult
from planner.search.space import SearchedMethod, Space
from planner.search.study import search
from planner.search.study_lock import StudyLock
from profiler.devices.table import lookup
from profiler.errors import InputError, UsageError
from profiler.units import DeviceBytes
from profiler.workload import Workload
from tests.planner.full_database import full_database

PROBLEM = SearchProblem(
    space=Space(
        base=Workload(model="resnet18", num_classes=10, image_size=32),
        methods=(SearchedMethod(name="full"), SearchedMethod(name="head")),
        micro_batches=(1, 4, 16),
        effective_batch=16,
        precisions=("fp32", "bf16"),
    ),
    device=lookup("rtx-2060-super"),
    limit_bytes=DeviceBytes(420 * MB),
)
URL = "sqlite:///studies/toy.db"
FORK = multiprocessing.get_context("fork")
IGNORE_FORK = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(trials: int, seed: int = 0, url: str = URL) -> SearchResult:
    return search(PROBLEM, ToyCosts(), trials=trials, seed=seed, study_name="toy", storage=url)


def keys() -> list[str]:
    trials = optuna.load_study(study_name="toy", storage=URL).trials
    assert {trial.state.name for trial in trials} <= {"COMPLETE"}
    return [json.dumps(trial.params, sort_keys=True) for trial in trials]


@IGNORE_FORK
def test_processes_on_one_study_share_its_trials() -> None:
    children = [FORK.Process(target=run, args=(24, seed)) for seed in (0, 0, 1)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert len(keys()) == 24
    assert len(set(keys())) == 24
    for assignment in PROBLEM.space.starting_points():
        assert json.dumps(assignment, sort_keys=True) in keys()
    assert left_over() == []


def append_runs(process: int) -> None:
    for number in range(5):
        append_probe_run(URL, "toy", f"{process}-{number}", {"process": process})
        append_probe_run(URL, "toy", f"shared-{number}", {"number": number})


@IGNORE_FORK
def test_probes_of_several_processes_keep_all_runs() -> None:
    run(1)
    children = [FORK.Process(target=append_runs, args=(process,)) for process in range(8)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0] * 8
    found = [json.dumps(each) for each in read_probe_runs(URL, "toy")]
    own = [json.dumps({"process": process}) for process in range(8)] * 5
    shared = [json.dumps({"number": number}) for number in range(5)]
    assert sorted(found) == sorted(own + shared)


@IGNORE_FORK
def test_eight_processes_may_create_one_study() -> None:
    """optuna#820, optuna#4621: a locked database, or tables that another process just made."""
    children = [FORK.Process(target=run, args=(8, seed)) for seed in range(8)]
    for child in children:
        child.start()
    for child in children:
        child.join(240)
    assert [child.exitcode for child in children] == [0] * 8
    assert len(set(keys())) == len(keys()) == 8


def left_over() -> list[str]:
    """Return the files in the folder but the database and SQLite's own files."""
    names = {path.name for path in Path("studies").iterdir()}
    return sorted(names - {"toy.db", "toy.db-wal", "toy.db-shm"})


def test_a_search_closes_its_database() -> None:
    run(1)
    assert [path.name for path in Path("studies").iterdir()] == ["toy.db"]


def slow_search() -> None:
    search(
        PROBLEM, ToyCosts(), trials=24, seed=0, study_name="toy", storage=URL,
        on_trial=lambda done, total: time.sleep(0.02),
    )  # fmt: skip


@IGNORE_FORK
def test_a_killed_search_leaves_a_whole_study_that_goes_on() -> None:
    run(1)
    child = FORK.Process(target=slow_search)
    child.start()
    while len(keys()) < 4:
        time.sleep(0.01)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    before = keys()
    assert run(24).trials == 24
    assert keys()[: len(before)] == before
    assert len(set(keys())) == 24
    assert left_over() == []


def test_a_study_without_points_left_ends_at_once() -> None:
    size = len(list(PROBLEM.space.assignments()))
    first = run(10_000)
    again = run(10_000)
    assert first.trials == again.trials == size
    assert again.stopped == first.stopped == "every point of the space was evaluated"


def test_a_space_whose_starting_points_coincide_ends() -> None:
    space = Space(
        base=Workload(model="resnet18", num_classes=10, image_size=32),
        methods=(SearchedMethod(name="head"),),
        micro_batches=(4,),
        effective_batch=4,
        precisions=("fp32",),
        optimizers=("sgd",),
        checkpoints=("none",),
    )
    problem = replace(PROBLEM, space=space)
    found = search(problem, ToyCosts(), trials=5, seed=0, study_name="one", storage=URL)
    assert found.trials == 1
    assert found.stopped == "every point of the space was evaluated"


def test_a_study_is_written_ahead_and_survives_a_power_failure() -> None:
    run(1)
    with sqlite3.connect("studies/toy.db") as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database.close()


def test_a_full_database_is_one_line_and_keeps_its_trials() -> None:
    run(2)
    before = keys()
    with full_database(), pytest.raises(InputError, match="is full") as caught:
        run(24)
    assert "\n" not in str(caught.value)
    kept = keys()
    assert kept[:2] == before
    assert len(kept) < 24
    assert run(24).trials == 24, "the study goes on once there is space"
    assert keys()[: len(kept)] == kept


@pytest.mark.parametrize(
    "url",
    [
        "nosuchdialect://me:secret@host/db",
        "postgresql+nosuchdriver://me:secret@host/db?sslpassword=secret",
        "me:secret@host",
    ],
)
def test_a_refused_storage_shows_no_password(url: str) -> None:
    with pytest.raises(InputError) as caught:
        run(1, url=url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 300


@pytest.mark.filterwarnings("ignore:Query string argument")
def test_a_result_shows_no_password() -> None:
    result = run(1, url="sqlite:///studies/toy.db?timeout=5&password=secret")
    assert result.storage == "sqlite:///studies/toy.db?timeout=5&password=***"


@pytest.mark.parametrize("name", ["a?b", "a\nb", "a\x1b[2J", "x" * 300, "\udcff"])
def test_a_name_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        search(PROBLEM, ToyCosts(), trials=1, seed=0, study_name=name)
    assert len(str(caught.value)) <= 300


def test_the_lock_is_released_after_an_error() -> None:
    Path("studies").mkdir()
    lock = StudyLock(URL, "toy")
    with pytest.raises(ZeroDivisionError), lock.held():
        raise ZeroDivisionError
    with lock.held():
        pass
    lock.close()
    assert list(Path("studies").iterdir()) == []
