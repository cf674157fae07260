"""Records of a training: progress, accuracy over time, epochs, and the result (training.json)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from planner.disk.json_files import read_json_as
from planner.recipe import Recipe
from profiler.errors import InputError
from profiler.json_records import (
    Fraction,
    JsonObject,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    check_schema,
    json_object,
    read_record,
    warn_of_dropped,
)
from profiler.models.backbones import WeightSource
from profiler.placement import Placement, PolicyChoice, placement_from_json, placement_to_json

HISTORY_FILE = "training.json"
CHECKPOINT_PREFIX = "checkpoint-"

TRAINING_SCHEMA = "budgetplan.training/1"

TRAINING_SCHEMA_MINOR = 3
"""1 added ``seed``, ``weights_file`` and ``schema_minor``; 2 added ``weights.notes``, ``recipe``,
``selected_step``, the ``part`` and ``mean_class_accuracy`` of a reading, and ``selection_images``,
``skip_reasons`` and ``copied_images`` of ``data``; 3 added ``class_names`` and ``transform``."""

Part = Literal["selection", "test"]
"""Part of a data set that is evaluated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRate:
    """A learning rate and the reason for it.

    Attributes:
        value: rate after the warm-up.
        warm_up_steps: number of steps over which the rate rises linearly; 0 for none.
        reason: reason for the value, as one clause.
    """

    value: float
    warm_up_steps: int
    reason: str

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """Return the learning rate of a recipe."""
        return cls(
            value=recipe.learning_rate,
            warm_up_steps=recipe.warm_up_steps,
            reason=recipe.source,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyReading:
    """Accuracy at one moment of a training.

    Attributes:
        step: optimizer steps done.
        seconds: duration of the training so far, with evaluations and earlier runs.
        loss: mean training loss over this epoch so far.
        accuracy: fraction of ``images`` classified right.
        mean_class_accuracy: mean over classes of the fraction of a class's images classified right;
            None in records before minor version 2.
        images: number of images evaluated.
        part: part of the data set that they are from.
    """

    step: PositiveInt
    seconds: NonNegativeFloat
    loss: float
    accuracy: Fraction
    mean_class_accuracy: Fraction | None = None
    images: PositiveInt
    part: Part = "test"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainProgress:
    """Progress of a training, after a step or after an evaluation.

    Attributes:
        epoch: number of the current epoch, from 1.
        epochs: number of epochs in all.
        step: number of the last step within the epoch, from 1.
        steps: steps per epoch.
        done: fraction of the training that is done.
        loss: mean training loss over this epoch so far.
        reading: the accuracy, after an evaluation; None after a step.
        message: a sentence about an out-of-memory error, a training that does not learn or one that
            has ended already; empty without one.
        selected_step: step that ended the selected epoch, whose tensors the reading on the test
            part is of; None for other readings and if no epoch is selected.
        learning_rate: rate of the last step; None before the first step.
        images_per_second: images of the last steps over their time, with the loading of images and
            without evaluations; None before the first step.
        reserved_bytes: highest bytes of the CUDA allocator's segments; None on a CPU.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    done: float
    loss: float
    learning_rate: float | None = None
    images_per_second: float | None = None
    reserved_bytes: int | None = None
    reading: AccuracyReading | None = None
    selected_step: int | None = None
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochResult:
    """Result of a whole epoch.

    Attributes:
        epoch: number of the epoch, from 1.
        loss: mean training loss over its steps.
        accuracy: fraction of the monitored part classified right at its end: the selection part, or
            the test part where the recipe selects no epoch.
        seconds: duration, evaluations included.
    """

    epoch: PositiveInt
    loss: float
    accuracy: Fraction
    seconds: NonNegativeFloat


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsFile:
    """File of weights that a training began with.

    Attributes:
        path: absolute path at the time of the training, with the entry of ``FILE::ENTRY``.
        sha256: SHA-256 of its content in hexadecimal digits.
    """

    path: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InputTransform:
    """The transform from an image in RGB to the model's input: crop, resize, normalise.

    Attributes:
        image_size: height and width of the input in pixels; the crop is resized bilinearly.
        mean: mean of each channel, subtracted; white is 1.
        std: standard deviation of each channel, divided by; white is 1.
        crop: ``whole`` for the whole image, ``centre`` for the centred square of 224/255 of the
            shorter side.
    """

    image_size: PositiveInt
    mean: tuple[float, float, float]
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    crop: Literal["whole", "centre"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """Result of a training: the record in ``training.json``.

    Attributes:
        epochs: whole epochs, those before a resume included.
        readings: accuracy over the training; the last is over all test images. Earlier runs'
            readings on the test part are among them.
        learning_rate: learning rate with its reason.
        recipe: recipe of the training; None in records before minor version 2.
        selected_step: step whose tensors were saved; None for the last one.
        seed: seed of the run; None in records of minor version 0.
        weights: origin of the backbone's weights; shown beside every accuracy.
        weights_file: file of the weights; None if they came from elsewhere.
        data: data source as plain data.
        class_names: name of each class, by label; empty in records before minor version 3.
        transform: transform of selection and test images; None in records before minor version 3.
        placement: placement that the model followed at the end.
        policy: policy that made it.
        step_downs: one sentence for each change of placement after an out-of-memory error.
        versions: versions of the packages, by name.
        output: folder of the result; not part of the record.
    """

    epochs: tuple[EpochResult, ...]
    readings: tuple[AccuracyReading, ...]
    learning_rate: LearningRate
    recipe: Recipe | None = None
    selected_step: PositiveInt | None = None
    seed: int | None = None
    weights: WeightSource
    weights_file: WeightsFile | None = None
    data: JsonObject
    class_names: tuple[str, ...] = ()
    transform: InputTransform | None = None
    placement: Placement
    policy: PolicyChoice
    step_downs: tuple[str, ...]
    versions: Mapping[str, str]
    output: Path

    def __post_init__(self) -> None:
        if not self.readings:
            raise InputError("a training has at least one accuracy reading, got none")

    @property
    def accuracy(self) -> float:
        """Fraction of all test images classified right at the end."""
        return self.readings[-1].accuracy

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``training.json``."""
        return {
            "schema": TRAINING_SCHEMA,
            "schema_minor": TRAINING_SCHEMA_MINOR,
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "readings": [asdict(reading) for reading in self.readings],
            "accuracy": self.accuracy,
            "learning_rate": asdict(self.learning_rate),
            "recipe": None if self.recipe is None else self.recipe.to_json(),
            "selected_step": self.selected_step,
            "seed": self.seed,
            "weights": asdict(self.weights),
            "weights_file": None if self.weights_file is None else asdict(self.weights_file),
            "data": dict(self.data),
            "class_names": list(self.class_names),
            "transform": None if self.transform is None else asdict(self.transform),
            "placement": placement_to_json(self.placement, self.policy),
            "step_downs": list(self.step_downs),
            "versions": dict(self.versions),
        }

    @classmethod
    def from_json(cls, data: object, *, output: Path) -> Self:
        """Read the object that ``to_json`` returns.

        Args:
            data: JSON object.
            output: folder that the record was read from.

        Raises:
            InputError: the data is not the record of a training. The message names the field.
        """
        given = json_object(data, part="training")
        dropped = check_schema(given, TRAINING_SCHEMA, minor=TRAINING_SCHEMA_MINOR, part="training")
        for derived in ("schema", "schema_minor", "accuracy"):
            given.pop(derived, None)
        given["placement"], given["policy"] = placement_from_json(
            given.get("placement"), part="training.placement", dropped=dropped
        )
        result = read_record(cls, given | {"output": output}, part="training", dropped=dropped)
        warn_of_dropped(dropped, part="training")
        return result


def read_result(folder: Path) -> TrainResult:
    """Read the record of the training in a folder.

    Raises:
        InputError: the record is damaged or missing, as of a training that was stopped.
    """
    if not (folder / HISTORY_FILE).exists() and any(folder.glob(f"{CHECKPOINT_PREFIX}*")):
        raise InputError(
            f"the training in {folder} was stopped before its end and has no result yet; finish it "
            "with `budgetplan train PLAN --resume`, in less time with --minutes"
        )
    return read_json_as(
        folder / HISTORY_FILE,
        lambda data: TrainResult.from_json(data, output=folder),
        kind="training",
    )
