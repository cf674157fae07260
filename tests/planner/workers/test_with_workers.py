"""`recommend --workers` and `budgetplan worker`, with real runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from planner.cli import cli
from planner.recommendation.pipeline import recommend
from planner.recommendation.request import Request
from planner.search.run_queue import opened_queue
from planner.search.space import SearchedMethod, Space
from planner.training.run_options import RunOptions
from planner.workers.slurm import job_options, submit_workers
from profiler.devices.table import device_label
from profiler.environment import processor_name
from profiler.errors import InputError, UsageError
from profiler.units import GIB
from profiler.workload import Candidate, Workload
from tests.planner.workers.toy_runs import toy_order, wait_until

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-c", "from planner.cli import main; main()"]


@pytest.fixture(autouse=True)
def cached(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("BUDGETPLAN_CACHE", str(tmp_path_factory.getbasetemp() / "worker-cache"))


def request(url: str, folder: Path, *, validations: int, find_lr: bool | None = None) -> Request:
    return Request(
        space=Space(
            base=Workload(model="test_vit", num_classes=10, image_size=32),
            methods=(SearchedMethod(name="full"), SearchedMethod(name="head")),
            micro_batches=(8,),
            effective_batch=8,
            precisions=("fp32",),
            optimizers=("sgd",),
            checkpoints=("none",),
        ),
        budget_bytes=2 * GIB,
        device=device_label("rtx-2060-super", "as the test says"),
        runs_on="cpu",
        run=RunOptions(data="digits", steps=2, pretrained=False),
        study="small",
        trials=4,
        storage=url,
        validations=validations,
        uses_workers=True,
        find_lr=find_lr,
        has_weights=False,
        out=folder / "plans",
    )


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/small.db"


@pytest.fixture
def started(url: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*COMMAND, "worker", "--study", "small", "--device", "cpu", "--json"],
        env=os.environ | {"BUDGETPLAN_STORAGE": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def test_an_answer_waits_for_the_runs_of_a_worker(
    url: str, tmp_path: Path, started: subprocess.Popen[str]
) -> None:
    seen: list[str] = []
    answer = recommend(
        request(url, tmp_path, validations=1), notify=lambda _, text, __: seen.append(text)
    )
    ran = [entry.plan for entry in answer.front if entry.plan.measurement is not None]
    assert len(ran) == 1
    for plan in ran:
        assert plan.measurement is not None
        assert plan.measurement.device.name == "cpu"
        assert f"process {started.pid}" in plan.provenance["run"]["worker"]
    assert any("waiting" in text or "running (cpu on" in text for text in seen)
    assert any("workers with a CPU" in note for note in answer.notes)
    started.send_signal(signal.SIGTERM)
    assert started.wait(60) == 143


def test_an_interrupted_question_withdraws_its_runs(url: str, tmp_path: Path) -> None:
    def interrupt(stage: str, text: str, _: float) -> None:
        if stage == "validate" and "waiting for a worker" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recommend(request(url, tmp_path, validations=2), notify=interrupt)
    with opened_queue(url, "small") as queue:
        assert queue.counts() == {"fail": 2}


def test_a_test_of_learning_rates_alone_is_a_run_for_workers(url: str, tmp_path: Path) -> None:
    def interrupt(stage: str, text: str, _: float) -> None:
        if stage == "learning rate" and "waiting for a worker" in text:
            raise KeyboardInterrupt

    given = request(url, tmp_path, validations=0, find_lr=True)
    with pytest.raises(KeyboardInterrupt):
        recommend(given, notify=interrupt)
    with opened_queue(url, "small") as queue:
        assert queue.counts() == {"fail": 1}


def test_a_killed_worker_leaves_no_process(url: str, tmp_path: Path) -> None:
    """The sandbox of its run ends with it."""
    slow = Workload(model="test_vit", num_classes=10, image_size=160, micro_batch=64)
    with opened_queue(url, "small") as queue:
        order = toy_order(
            candidate=Candidate(workload=slow), processor=processor_name(), steps=10_000
        )
        queue.enqueue(replace(order, pretrained=False).to_json())
    worker = subprocess.Popen(
        [*COMMAND, "worker", "--study", "small", "--device", "cpu", "--storage", url],
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: children_of(worker.pid))
        (child,) = children_of(worker.pid)
        worker.kill()
        worker.wait()
        wait_until(lambda: not Path(f"/proc/{child}").exists(), seconds=10)
    finally:
        worker.kill()
        worker.wait()


def children_of(pid: int) -> list[int]:
    file = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in file.read_text().split()] if file.exists() else []


def test_workers_need_a_storage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--storage"):
        replace(request("sqlite:///x.db", tmp_path, validations=1), storage=None)
    with pytest.raises(UsageError, match="--no-validate"):
        request("sqlite:///x.db", tmp_path, validations=0)
    for arguments in (["worker", "--study", "small"], ["worker", "--storage", "sqlite:///x.db"]):
        found = CliRunner().invoke(cli, arguments, env={"BUDGETPLAN_STORAGE": ""})
        assert found.exit_code == 2
    found = CliRunner().invoke(
        cli,
        ["worker", "--study", "s", "--storage", f"sqlite:///{tmp_path}/s.db", "--device", "h200"],
    )
    assert found.exit_code == 5


# ---- SLURM ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_submitit_starts_the_same_worker_and_its_files_hold_no_password(
    url: str, tmp_path: Path
) -> None:
    pytest.importorskip("submitit")
    secret = f"{url}?password=verysecret"  # SQLite ignores it
    folder = tmp_path / "jobs"
    (job,) = submit_workers(
        secret, "small", 1, folder=folder, options={}, device="cpu", until_empty=True,
        cluster="local",
    )  # fmt: skip
    wait_until(lambda: list(folder.glob("*result.pkl")))
    for file in folder.iterdir():
        assert b"verysecret" not in file.read_bytes(), file
    log = next(folder.glob(f"{job}*.out")).read_text()
    assert "0 done, 0 failed" in log
    assert "BUDGETPLAN_STORAGE" not in os.environ


def test_a_machine_without_slurm_is_one_line(url: str, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    with pytest.raises(InputError, match="SLURM did not take the jobs"):
        submit_workers(url, "small", 1, folder=tmp_path / "jobs", options={"partition": "gpu"})
    assert job_options(["partition=gpu", "timeout_min=60"]) == {
        "partition": "gpu", "timeout_min": 60,
    }  # fmt: skip
    with pytest.raises(UsageError, match="partition=gpu"):
        job_options(["gpu"])
