"""What a training reports: accuracy over time, results of epochs, progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.plan import versions
from planner.training.learning_rate import LearningRate
from profiler.models.backbones import WeightSource
from profiler.workload import Candidate

if TYPE_CHECKING:
    pass

SCHEMA = "budgetplan.training/1"


# ---- what is reported ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Accuracy at one moment of a training.

    Attributes:
        step: optimizer steps done.
        seconds: of the training so far, evaluations and earlier runs included.
        loss: mean over this epoch so far.
        accuracy: fraction of ``images``.
        images: of the held-out ones, how many were looked at.
    """

    step: int
    seconds: float
    loss: float
    accuracy: float
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainProgress:
    """Where a training is: after a step, or at a reading.

    Attributes:
        epoch: from 1.
        epochs: in all.
        step: of this epoch, from 1.
        steps: of an epoch.
        done: fraction of the training.
        loss: mean over this epoch so far.
        reading: when this is one.
        message: what happened, when something did.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    done: float
    loss: float
    reading: Reading | None = None
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochResult:
    """One whole epoch: mean loss over its steps, held-out accuracy (fraction) and duration."""

    epoch: int
    loss: float
    accuracy: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a training did.

    Attributes:
        epochs: one entry for each whole one, those before a resume included.
        readings: accuracy over the training; the last is of all held-out images.
        learning_rate: with its reason.
        weights: where the backbone's weights came from; belongs beside every accuracy.
        data: the data source as plain data.
        candidate: the workload and the placement that the model followed at the end.
        step_downs: a sentence for every time memory ran out.
        output: the folder.
    """

    epochs: tuple[EpochResult, ...]
    readings: tuple[Reading, ...]
    learning_rate: LearningRate
    weights: WeightSource
    data: Mapping[str, Any]
    candidate: Candidate
    step_downs: tuple[str, ...]
    output: Path

    @property
    def accuracy(self) -> float:
        """Fraction of held-out images at the end."""
        return self.readings[-1].accuracy

    def to_json(self) -> dict[str, Any]:
        """Return plain data, as in ``training.json``."""
        return {
            "schema": SCHEMA,
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "readings": [asdict(reading) for reading in self.readings],
            "accuracy": self.accuracy,
            "learning_rate": asdict(self.learning_rate),
            "weights": asdict(self.weights),
            "data": dict(self.data),
            "placement": self.candidate.to_json()["placement"],
            "step_downs": list(self.step_downs),
            "versions": versions(),
        }
