"""The loggers of a training, each held against what the real library has stored."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from planner.training.history import AccuracyReading, TrainProgress
from planner.training.loggers import LOGGERS, check_loggers, opened_loggers, plan_settings
from profiler.errors import BudgetplanWarning, InputError, UnknownNameError
from tests.planner.training.plans import make_plan
from tests.planner.training.trainings import workload

READINGS = [(5, 2.5, 0.25, "selection"), (10, 1.25, 0.5, "selection"), (10, 1.25, 0.75, "test")]
PLAN = make_plan(workload())
QUIET = pytest.mark.filterwarnings("ignore")
"""The libraries give warnings of their own at import, which are not ours to mend."""


def progress(step: int, loss: float, accuracy: float, part: Any) -> TrainProgress:
    reading = AccuracyReading(
        step=step, seconds=2.0 * step, loss=loss, accuracy=accuracy, images=20, part=part
    )
    return TrainProgress(
        epoch=1, epochs=1, step=step, steps=10, done=step / 10, loss=loss, reading=reading
    )


def record_run(name: str, folder: Path) -> None:
    folder.mkdir()
    with opened_loggers([name], PLAN, folder) as record:
        for reading in READINGS:
            record(progress(*reading))
            record(replace(progress(*reading), reading=None))


@QUIET
def test_tensorboard_has_the_readings(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record_run("tensorboard", tmp_path / "run")
    stored: Any = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    stored.Reload()
    seen = [(e.step, e.value) for e in stored.Scalars("accuracy/selection")]
    assert seen == [(5, 0.25), (10, 0.5)]
    assert [(e.step, e.value) for e in stored.Scalars("accuracy/test")] == [(10, 0.75)]
    assert [e.value for e in stored.Scalars("loss")] == [2.5, 1.25, 1.25]


@QUIET
def test_mlflow_has_the_readings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    record_run("mlflow", tmp_path / "run")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("budgetplan")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run"
    assert run.info.status == "FINISHED"
    assert run.data.params["method"] == "lora"
    history = client.get_metric_history(run.info.run_id, "accuracy/selection")
    assert [(m.step, m.value) for m in history] == [(5, 0.25), (10, 0.5)]


@QUIET
def test_wandb_has_the_readings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    record_run("wandb", tmp_path / "run")
    (file,) = (tmp_path / "run").rglob("*.wandb")
    stored = file.read_bytes()  # the library has no reader of its own for them
    for text in (b"accuracy/selection", b"accuracy/test", b"0.75", b"micro_batch"):
        assert text in stored


@QUIET
def test_trackio_has_the_readings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    record_run("trackio", tmp_path / "run")
    assert trackio is not None
    from trackio.sqlite_storage import SQLiteStorage

    rows = SQLiteStorage.get_logs("budgetplan", "run")
    assert [row["accuracy/selection"] for row in rows if "accuracy/selection" in row] == [0.25, 0.5]


class Broken:
    def __init__(self, fails_at: str) -> None:
        self.fails_at = fails_at
        self.calls: list[str] = []

    def log(self, values: Any, *, step: int) -> None:
        self.calls.append("log")
        if self.fails_at == "log":
            raise ConnectionError("the server is away\nand more")

    def close(self, *, failed: bool) -> None:
        self.calls.append("close as failed" if failed else "close")
        if self.fails_at == "close":
            raise ConnectionError("the server is away")


@pytest.mark.parametrize("fails_at", ["open", "log", "close"])
def test_a_logger_that_fails_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    broken, good = Broken(fails_at), Broken("never")

    def opened(folder: Path, settings: Any) -> Any:
        if fails_at == "open":
            raise ConnectionError("the server is away")
        return broken

    loggers = {"mlflow": opened, "wandb": lambda folder, settings: good}
    monkeypatch.setattr("planner.training.loggers.LOGGERS", loggers)
    with (
        pytest.warns(BudgetplanWarning, match="mlflow failed.*: the server is away$") as warned,
        opened_loggers(["mlflow", "wandb"], PLAN, tmp_path) as record,
    ):
        for reading in READINGS:
            record(progress(*reading))
    assert good.calls == ["log"] * 3 + ["close"]
    expected = {"open": [], "log": ["log", "close"], "close": ["log"] * 3 + ["close"]}
    assert broken.calls == expected[fails_at]
    assert len(warned) == 1


def test_a_logger_that_is_named_twice_is_opened_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Broken] = []

    def opened(folder: Path, settings: Any) -> Any:
        made.append(Broken("never"))
        return made[-1]

    monkeypatch.setattr("planner.training.loggers.LOGGERS", {"wandb": opened})
    with opened_loggers(["wandb", "wandb"], PLAN, tmp_path) as record:
        record(progress(*READINGS[0]))
    assert [each.calls for each in made] == [["log", "close"]]


def test_a_training_that_fails_is_none_that_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Broken("never")
    monkeypatch.setattr("planner.training.loggers.LOGGERS", {"wandb": lambda *_: good})
    with (
        pytest.raises(RuntimeError, match="training failed"),
        opened_loggers(["wandb"], PLAN, tmp_path),
    ):
        raise RuntimeError("the training failed")
    assert good.calls == ["close as failed"]


class StubOfMLflow(ModuleType):
    """The functions of MLflow's client that are called; some refuse."""

    def __init__(self, *, refuses: bool) -> None:
        super().__init__("mlflow")
        self._refuses = refuses
        self.ended: list[str] = []

    def set_experiment(self, name: str) -> None:
        pass

    def start_run(self, run_name: str) -> object:
        return SimpleNamespace(info=SimpleNamespace(run_id="1"))

    def log_params(self, params: object) -> None:
        if self._refuses:
            raise ConnectionError("the server is away")

    def end_run(self, status: str = "FINISHED") -> None:
        self.ended.append(status)


@pytest.mark.parametrize(
    ("refuses", "fails", "status"),
    [(False, False, "FINISHED"), (False, True, "FAILED"), (True, False, "FAILED")],
)
@pytest.mark.filterwarnings("ignore:the logger mlflow failed")
def test_a_run_of_mlflow_is_ended_by_its_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, refuses: bool, fails: bool, status: str
) -> None:
    stub = StubOfMLflow(refuses=refuses)
    monkeypatch.setitem(sys.modules, "mlflow", stub)
    with suppress(RuntimeError), opened_loggers(["mlflow"], PLAN, tmp_path):
        if fails:
            raise RuntimeError("the training failed")
    assert stub.ended == [status]


class StubOfProjects(ModuleType):
    """``init`` and ``finish`` of W&B, whose ``finish`` takes an exit code, or of trackio."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ended: list[object] = []
        finish = self.finish_with_code if name == "wandb" else self.finish
        self.run = SimpleNamespace(finish=finish)

    def init(self, **_: object) -> object:
        return self.run

    def finish_with_code(self, exit_code: int | None = None, quiet: bool | None = None) -> None:
        self.ended.append(exit_code)

    def finish(self) -> None:
        self.ended.append("ended")


@pytest.mark.parametrize("name", ["wandb", "trackio"])
@pytest.mark.parametrize("error", [None, RuntimeError("failed"), KeyboardInterrupt()])
def test_a_run_of_wandb_ends_with_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException | None
) -> None:
    """W&B shows a run as finished for 0 and as failed for any other number."""
    stub = StubOfProjects(name)
    monkeypatch.setitem(sys.modules, name, stub)
    with suppress(RuntimeError, KeyboardInterrupt), opened_loggers([name], PLAN, tmp_path):
        if error is not None:
            raise error
    codes = {"wandb": 0 if error is None else 1, "trackio": "ended"}
    assert stub.ended == [codes[name]]
    assert type(stub.ended[0]) is type(codes[name])  # True would be shown as it is


def test_a_logger_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownNameError, match="mlflow"):
        check_loggers(["mlfow"])
    monkeypatch.setattr("planner.training.loggers.find_spec", lambda name: None)
    for name in LOGGERS:
        with pytest.raises(InputError, match=f"pip install {name}"):
            check_loggers([name])


def test_the_settings_are_plain_values() -> None:
    settings = plan_settings(PLAN)
    assert settings["rank"] == 4
    assert all(isinstance(value, str | int | float) for value in settings.values())
