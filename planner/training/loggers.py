"""Loggers of a training: TensorBoard, MLflow, Weights & Biases and trackio, through one hook.

``run.csv`` is always written (planner/training/run_files.py). A logger gets the plan at the
beginning, and at each accuracy reading the same values under the same names:

    loss            mean training loss over the epoch so far
    accuracy/PART   fraction of the images of a part classified right
    seconds         duration of the training so far

A logger's own settings say where they go: MLFLOW_TRACKING_URI, WANDB_MODE, TRACKIO_DIR.
A logger that fails does not end the training; it gives one warning and gets nothing more.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from planner.plan import Plan
from planner.training.history import TrainProgress
from profiler.errors import BudgetplanWarning, InputError, UnknownNameError

LoggerName = Literal["tensorboard", "mlflow", "wandb", "trackio"]

PROJECT = "budgetplan"
"""Name of the project, or of the experiment, in the loggers that have one."""

TENSORBOARD_FOLDER = "tensorboard"
"""Folder of TensorBoard's files in that of the training."""

Settings = Mapping[str, str | int | float]


class RunLogger(Protocol):
    """One run in a logger."""

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Record values at an optimizer step."""

    def close(self) -> None:
        """End the run."""


class TensorBoardLogger:
    """TensorBoard's event files in the folder of the training."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / TENSORBOARD_FOLDER))
        self._writer.add_text("plan", "\n\n".join(f"{k}: {v}" for k, v in settings.items()))

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Record values at an optimizer step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """End the run."""
        self._writer.close()


class MLflowLogger:
    """A run of MLflow's client, in an experiment of our own unless another one is set."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        import os

        import mlflow

        if "MLFLOW_EXPERIMENT_NAME" not in os.environ and "MLFLOW_EXPERIMENT_ID" not in os.environ:
            mlflow.set_experiment(PROJECT)
        self._mlflow: Any = mlflow
        self._run: Any = mlflow.start_run(run_name=folder.name)
        mlflow.log_params(dict(settings))

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Record values at an optimizer step."""
        self._mlflow.log_metrics(dict(values), step=step, run_id=self._run.info.run_id)

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


class ProjectLogger:
    """A run of Weights & Biases, or of trackio, which has the same functions."""

    def __init__(self, library: Any, folder: Path, settings: Settings, **options: Any) -> None:
        self._run: Any = library.init(
            project=PROJECT, name=folder.name, config=dict(settings), **options
        )

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Record values at an optimizer step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """End the run."""
        self._run.finish()


def _open_wandb(folder: Path, settings: Settings) -> RunLogger:
    import wandb

    return ProjectLogger(wandb, folder, settings, dir=str(folder))


def _open_trackio(folder: Path, settings: Settings) -> RunLogger:
    import trackio

    return ProjectLogger(trackio, folder, settings)


LOGGERS: Mapping[str, Callable[[Path, Settings], RunLogger]] = {
    "tensorboard": TensorBoardLogger,
    "mlflow": MLflowLogger,
    "wandb": _open_wandb,
    "trackio": _open_trackio,
}
"""Function that opens a run in the folder of a training, by the name of the logger's package."""


def check_loggers(names: Sequence[str]) -> None:
    """Refuse a logger that is unknown or not installed, before anything is computed.

    Raises:
        UnknownNameError: there is no such logger.
        InputError: its package is not installed.
    """
    for name in names:
        if name not in LOGGERS:
            raise UnknownNameError(kind="logger", name=name, known=LOGGERS)
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # a folder of this name is no package
            raise InputError(f"the logger {name} is not installed: pip install {name}")


@contextmanager
def opened_loggers(
    names: Sequence[str], plan: Plan, folder: Path
) -> Iterator[Callable[[TrainProgress], None]]:
    """Open loggers, yield the function that gets each progress, and close them.

    Args:
        names: names of the loggers.
        plan: plan that is trained.
        folder: folder of the training.
    """
    opened: dict[str, RunLogger] = {}
    for name in names:
        with _only_warned(name, opened):
            opened[name] = LOGGERS[name](folder, plan_settings(plan))

    def record(progress: TrainProgress) -> None:
        reading = progress.reading
        if reading is None:
            return
        values = {
            "loss": reading.loss,
            f"accuracy/{reading.part}": reading.accuracy,
            "seconds": reading.seconds,
        }
        for name, logger in list(opened.items()):
            with _only_warned(name, opened):
                logger.log(values, step=reading.step)

    try:
        yield record
    finally:
        for name, logger in list(opened.items()):
            with _only_warned(name, opened):
                logger.close()


def plan_settings(plan: Plan) -> Settings:
    """Return the settings of a plan that runs are compared by."""
    workload = plan.candidate.workload
    return {
        "model": workload.model,
        "method": workload.method,
        "rank": workload.rank or 0,
        "micro_batch": workload.micro_batch,
        "accumulation": workload.accumulation,
        "precision": workload.precision,
        "optimizer": workload.optimizer,
        "image_size": workload.image_size,
        "policy": plan.candidate.policy.name,
        "budget_bytes": plan.budget_bytes,
        "predicted_peak_bytes": plan.prediction.memory.peak_bytes,
    }


@contextmanager
def _only_warned(name: str, opened: dict[str, RunLogger]) -> Iterator[None]:
    """Turn an error of a logger into one warning, and leave the logger out from then on."""
    try:
        yield
    except Exception as error:
        opened.pop(name, None)
        lines = str(error).strip().splitlines() or [type(error).__name__]
        warnings.warn(
            f"the logger {name} failed and gets nothing more: {lines[0]}",
            BudgetplanWarning,
            stacklevel=3,
        )
