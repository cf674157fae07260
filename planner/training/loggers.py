"""Loggers of a training: TensorBoard, MLflow, Weights & Biases and trackio, through one hook.

``run.csv`` is always written (planner/training/run_files.py). A logger gets the plan at the
beginning, and at each accuracy reading the same values under the same names:

    loss            mean training loss over the epoch so far
    accuracy/PART   fraction of the images of a part classified right
    seconds         duration of the training so far

A logger's own settings say where they go: MLFLOW_TRACKING_URI, WANDB_MODE, TRACKIO_DIR.
A logger that fails does not end the training: it gives one warning, gets no more values, and is
closed with the others. MLflow and Weights & Biases are told whether the training failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from planner.plan import Plan
from planner.training.history import TrainProgress
from profiler.errors import InputError, UnknownNameError, warn_caller

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

    def close(self, *, failed: bool) -> None:
        """End the run.

        Args:
            failed: whether the training ended by an error.
        """


class TensorBoardLogger:
    """TensorBoard's event files in the folder of the training."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / TENSORBOARD_FOLDER))
        with ExitStack() as opening:
            opening.callback(self.close, failed=True)
            self._writer.add_text("plan", "\n\n".join(f"{k}: {v}" for k, v in settings.items()))
            opening.pop_all()

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Record values at an optimizer step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, *, failed: bool) -> None:
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
        with ExitStack() as opening:
            opening.callback(self.close, failed=True)
            mlflow.log_params(dict(settings))
            opening.pop_all()

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Record values at an optimizer step."""
        self._mlflow.log_metrics(dict(values), step=step, run_id=self._run.info.run_id)

    def close(self, *, failed: bool) -> None:
        """End the run."""
        self._mlflow.end_run(status="FAILED" if failed else "FINISHED")


class ProjectLogger:
    """A run of trackio, or of Weights & Biases, which has the same functions."""

    def __init__(self, library: Any, folder: Path, settings: Settings, **options: Any) -> None:
        self._run: Any = library.init(
            project=PROJECT, name=folder.name, config=dict(settings), **options
        )

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Record values at an optimizer step."""
        self._run.log(dict(values), step=step)

    def close(self, *, failed: bool) -> None:
        """End the run."""
        self._run.finish()


class WandbLogger(ProjectLogger):
    """A run of Weights & Biases, which keeps an exit code."""

    def close(self, *, failed: bool) -> None:
        """End the run."""
        self._run.finish(exit_code=int(failed))


def _open_wandb(folder: Path, settings: Settings) -> RunLogger:
    import wandb

    return WandbLogger(wandb, folder, settings, dir=str(folder))


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


class GuardedLogger:
    """A logger whose first error is a warning, after which it is only closed.

    Args:
        name: name of the logger.
        folder: folder of the training.
        settings: settings of the plan.
    """

    def __init__(self, name: str, folder: Path, settings: Settings) -> None:
        self._name, self._has_failed = name, False
        self._logger: RunLogger | None = None
        with self._only_warned():
            self._logger = LOGGERS[name](folder, settings)

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Record values at an optimizer step."""
        if self._logger is not None and not self._has_failed:
            with self._only_warned():
                self._logger.log(values, step=step)

    def close(self, *, failed: bool) -> None:
        """End the run."""
        if self._logger is not None:
            with self._only_warned():
                self._logger.close(failed=failed)

    @contextmanager
    def _only_warned(self) -> Iterator[None]:
        """Turn the first error into a warning, and leave out later ones."""
        try:
            yield
        except Exception as error:
            if not self._has_failed:
                lines = str(error).strip().splitlines() or [type(error).__name__]
                warn_caller(
                    f"the logger {self._name} failed and gets nothing more: {lines[0]}",
                )
            self._has_failed = True


@contextmanager
def opened_loggers(
    names: Sequence[str], plan: Plan, folder: Path
) -> Iterator[Callable[[TrainProgress], None]]:
    """Open loggers, yield the function that gets each progress, and close them.

    Args:
        names: names of the loggers; a name that is given twice opens one logger.
        plan: plan that is trained.
        folder: folder of the training.
    """
    settings = plan_settings(plan)
    opened: list[GuardedLogger] = []

    def record(progress: TrainProgress) -> None:
        reading = progress.reading
        if reading is None:
            return
        values = {
            "loss": reading.loss,
            f"accuracy/{reading.part}": reading.accuracy,
            "seconds": reading.seconds,
        }
        for logger in opened:
            logger.log(values, step=reading.step)

    with ExitStack() as stack:
        for name in dict.fromkeys(names):
            logger = GuardedLogger(name, folder, settings)
            stack.push(lambda kind, *_, logger=logger: logger.close(failed=kind is not None))
            opened.append(logger)
        yield record


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
