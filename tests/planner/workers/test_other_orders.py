"""Measurements and probes as orders: a worker runs them, and whoever asked gets their results."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import profiler.running.measurement
from planner.api import workload_functions
from planner.cli import cli
from planner.recipe import Recipe
from planner.recommendation.probe_front import rule_of
from planner.recommendation.probe_run_order import run_probe_order
from planner.recommendation.request import Request
from planner.search.probe_storage import append_probe_run
from planner.search.run_queue import opened_queue
from planner.search.space import SearchedMethod, Space
from planner.training.probe_messages import ProbeRequest, ProbeResult
from planner.training.probe_records import Learner, ProbeRun, ProbeSetting
from planner.training.run_options import RunOptions
from planner.workers import run_pool, worker
from planner.workers.outcomes import FinishedProbe, FinishedRun, error_outcome
from planner.workers.run_device import this_device
from planner.workers.run_pool import RunPool, opened_pool
from profiler.devices.table import device_label
from profiler.errors import BudgetplanError, InputError, UsageError
from profiler.records import DeviceLabel
from profiler.units import GIB, DeviceBytes
from profiler.workload import Candidate, Workload
from tests.planner.workers.toy_runs import toy_order

WORKLOAD = Workload(model="test_vit", num_classes=10, image_size=32, micro_batch=4)


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(run_pool, "LOOK_SECONDS", 0.05)
    return f"sqlite:///{tmp_path}/small.db"


def in_this_process(
    function: Callable[[Any, Any], Any], message: Any, result: type, **options: Any
) -> Any:
    assert isinstance(options["cancelled"], threading.Event)
    return function(message, options["on_progress"])


@contextmanager
def a_worker(url: str) -> Iterator[None]:
    """A worker of the study ``small`` in a thread, which ends after the runs of the block."""
    is_over = threading.Event()

    def take() -> None:
        with opened_queue(url, "small") as queue:
            while not is_over.wait(0.05):
                worker.work(queue, this_device("cpu"), until_empty=True)

    thread = threading.Thread(target=take)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def test_a_measurement_by_a_worker_is_printed_like_one_of_this_machine(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiler.running.measurement, "run_in_process", in_this_process)
    monkeypatch.setattr(workload_functions, "_replay_for", lambda *_, **__: None)
    command = [
        "measure", "--model", "test_vit", "--method", "head", "--batch-size", "2", "--image-size",
        "32", "--num-classes", "3", "--steps", "2", "--warmup", "1", "--device", "cpu", "--json",
        "--workers", "--study", "small", "--storage", url,
    ]  # fmt: skip
    with a_worker(url):
        found = CliRunner().invoke(cli, command)
    assert found.exit_code == 0, found.stderr
    report = json.loads(found.stdout)
    assert report["rung"] == "measured"
    assert report["workload"]["method"] == "head"
    assert len(report["details"]["step_seconds"]) == 2
    assert report["notes"][-1].startswith("measured by a worker: cpu on ")


def test_workers_need_a_study_a_storage_and_a_device(url: str) -> None:
    def measure(**given: Any) -> Any:
        return workload_functions.measure("test_vit", "head", **given)

    for given in ({"storage": url}, {"study": "small"}, {"study": "small", "storage": url}):
        with pytest.raises(UsageError):
            measure(workers=True, **given)
    with pytest.raises(UsageError, match="add it"):
        measure(study="small", device="cpu")


# ---- probes --------------------------------------------------------------------------------------


def request(url: str, device: DeviceLabel, **changes: Any) -> Request:
    given: dict[str, Any] = {
        "space": Space(
            base=WORKLOAD, methods=(SearchedMethod(name="head"),), micro_batches=(4,),
            effective_batch=4, precisions=("fp32",), optimizers=("sgd",),
        ),
        "budget_bytes": DeviceBytes(GIB),
        "device": device,
        "runs_on": "cpu",
        "run": RunOptions(data="digits", pretrained=False),
        "study": "small",
        "trials": 1,
        "storage": url,
        "uses_workers": True,
        "has_weights": False,
    }  # fmt: skip
    return Request(**given | changes)


def stored_run(key_seed: int) -> ProbeRun:
    setting = ProbeSetting(
        data="d", weights="random", model="test_vit", image_size=32, train_images=8,
        held_out_images=4, device="cpu", seed=0,
    )  # fmt: skip
    return ProbeRun(
        setting=setting, learner="head", rate_factor=1.0, learning_rate=0.1, seed=key_seed,
        steps=2, seconds=0.5, right="f",
    )  # fmt: skip


def test_a_probe_by_a_worker_returns_the_trainings_that_it_stored(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker reaches the study by its own storage URL; here it is the same."""
    runs = stored_run(1), stored_run(2)
    asked: list[ProbeRequest] = []

    def trained(function: Any, message: ProbeRequest, result: Any, **options: Any) -> ProbeResult:
        asked.append(message)
        for run in runs:
            append_probe_run(message.storage, message.study, run.key, run.to_json())
        return ProbeResult(
            runs=runs, earlier_runs=1, seconds=2.0, reason="clear", failures={"a": "n"}
        )

    monkeypatch.setattr("planner.workers.real_run.run_in_process", trained)
    recipe = Recipe(learning_rate=1e-3, epochs=2, patience_epochs=2, source="a test")
    learner = Learner(name="head", candidate=Candidate(workload=WORKLOAD), recipe=recipe)
    question = request(url, device_label("cpu"))
    make_study(url)
    with a_worker(url), opened_pool(url, "small", device=None, at_once=1) as pool:
        result = run_probe_order(
            question,
            [learner],
            purpose="compare",
            rule=rule_of(question),
            seconds=60.0,
            limit_seconds=100.0,
            pool=pool,
            on_progress=lambda *_: None,
        )
    assert result == ProbeResult(
        runs=runs, earlier_runs=1, seconds=2.0, reason="clear", failures={"a": "n"}
    )
    (message,) = asked
    assert message.learners == (learner,)
    assert (message.storage, message.study, message.seconds) == (url, "small", 60.0)


def make_study(url: str) -> None:
    import optuna

    optuna.create_study(study_name="small", storage=url, load_if_exists=True)


@pytest.mark.parametrize(
    ("device", "uses_workers", "expected"),
    [
        (device_label("rtx-3060"), True, "cuda"),
        (device_label("rtx-3060"), False, "cpu"),
        (device_label("rtx-2060-super", "no GPU here"), True, "cpu"),
        (device_label("cpu"), True, "cpu"),
    ],
)
def test_workers_probe_on_the_gpu_that_was_named(
    device: DeviceLabel, uses_workers: bool, expected: str, url: str
) -> None:
    assert rule_of(request(url, device, uses_workers=uses_workers)).device == expected


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        (error_outcome(InputError("no images")), "no images"),
        (
            FinishedProbe(keys=(), earlier_runs=0, seconds=0.0, reason="r").to_json(),
            "another kind",
        ),
    ],
)
def test_an_outcome_of_another_kind_and_an_error_end_the_wait(
    outcome: dict[str, Any], text: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = RunPool.submit

    def answered(pool: RunPool, order: Any) -> str:
        key = submit(pool, order)
        claimed = pool._queue.claim_key(key, worker="w")
        assert claimed is not None
        pool._queue.finish(claimed, outcome, value=None if "error" in outcome else 1.0)
        return key

    monkeypatch.setattr(RunPool, "submit", answered)
    with (
        opened_pool(url, "small", device=None, at_once=1) as pool,
        pytest.raises(BudgetplanError, match=text),
    ):
        pool.result_of(toy_order(), FinishedRun, lambda *_: None)
