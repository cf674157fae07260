"""Messages between a validation and its child process."""

from __future__ import annotations

from planner.recipe import Recipe
from planner.training.images.image_set import DataSource
from profiler.json_records import Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt
from profiler.models.backbones import WeightSource
from profiler.records import DeviceKind
from profiler.running.measurement import MeasuredSteps
from profiler.running.messages import Message
from profiler.workload import Candidate


class ValidationRequest(Message, frozen=True, kw_only=True):
    """Request of a validation.

    Attributes:
        candidate: workload and placement to run.
        device: type of device to run on.
        budget_bytes: hard memory limit in device bytes; None for no limit.
        data: name of a data set, or a folder.
        steps: number of training steps.
        seed: seed of new weights, dropout and the choice of images.
        weights: path of a weights file; None for no file.
        recipe: recipe of the plan; None for the default one.
        pretrained: whether timm's pretrained weights are loaded when no file is given.
        training_seconds: time limit of the training steps on a CPU.
        test_seconds: time limit of the evaluation.
    """

    candidate: Candidate
    device: DeviceKind
    budget_bytes: PositiveInt | None
    data: str
    steps: PositiveInt
    seed: int
    weights: str | None
    recipe: Recipe | None = None
    pretrained: bool
    training_seconds: float
    test_seconds: float


class Inference(Message, frozen=True, kw_only=True):
    """Accuracy and cost of evaluating selection images.

    Attributes:
        accuracy: fraction of the images classified right.
        images: number of images evaluated.
        seconds: seconds for the whole test set, scaled from ``images``.
        peak_bytes: peak of an evaluated batch, with the model and without an optimizer.
        watts: average power; None where it cannot be read.
    """

    accuracy: Fraction
    images: PositiveInt
    seconds: NonNegativeFloat
    peak_bytes: NonNegativeInt
    watts: float | None


class ValidationResult(Message, frozen=True, kw_only=True):
    """Result of a validation.

    Attributes:
        training: readings of the training steps, with the notes of the whole run.
        losses: loss of each step.
        inference: readings of the evaluation.
        weights: origin of the backbone's weights.
        data: origin of the images.
    """

    training: MeasuredSteps
    losses: tuple[float, ...]
    inference: Inference
    weights: WeightSource
    data: DataSource
