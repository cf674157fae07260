"""Use of a trained folder: its accuracy on images, and the classes of single image files.

The folder's ``training.json`` records the class names and the transform, so both functions need
nothing else. Folders of earlier versions record neither: they can be evaluated, and classify
nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch

from planner.plan import PLAN_FILE, Plan, read_plan
from planner.training.evaluate import count_by_class, mean_class_accuracy, right_answers
from planner.training.history import InputTransform, Part, TrainResult, read_result
from planner.training.images.crops import CROP_RULES
from planner.training.images.image_files import open_image
from planner.training.images.image_set import ImageData, ImageSet, InputFormat
from planner.training.plan_check import load_data_for
from planner.training.trained_model import build_trained
from planner.training.training_device import autocast
from profiler.errors import InputError
from profiler.records import DeviceKind

if TYPE_CHECKING:
    from torch import nn

EVALUATION_SCHEMA = "budgetplan.evaluation/1"
CLASSIFICATION_SCHEMA = "budgetplan.classification/1"

Which = Literal["best", "last"]
"""Tensors of the best epoch, as saved in ``model/``, or those of the last step."""

BATCH = 32
"""Most images in a forward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedFolder:
    """A trained model with its records.

    Attributes:
        folder: the folder.
        plan: plan that was trained.
        result: record of the training.
        model: the model in evaluation mode, on ``device``.
        device: ``cpu`` or ``cuda``.
    """

    folder: Path
    plan: Plan
    result: TrainResult
    model: nn.Module
    device: DeviceKind

    @property
    def precision(self) -> str:
        """Precision of the forward: the plan's, but fp32 in place of fp16 on a CPU."""
        planned = self.plan.candidate.workload.precision
        return "fp32" if planned == "fp16" and self.device == "cpu" else planned

    @property
    def batch_size(self) -> int:
        """Images in a forward: the plan's micro-batch, at most ``BATCH``."""
        return min(self.plan.candidate.workload.micro_batch, BATCH)


def open_trained(
    folder: Path, *, device: DeviceKind, which: Which = "best", weights: Path | None = None
) -> TrainedFolder:
    """Load a trained folder.

    Args:
        folder: folder of the training.
        device: ``cpu`` or ``cuda``.
        which: tensors to load.
        weights: present place of the backbone's weights file; None for the recorded place.

    Raises:
        InputError: the folder holds no training, or its weights cannot be loaded any more.
    """
    plan, result = read_plan(folder / PLAN_FILE), read_result(folder)
    model = build_trained(folder, plan, result, weights=weights, is_last=which == "last")
    return TrainedFolder(
        folder=folder,
        plan=plan,
        result=result,
        model=model.to(device),
        device=device,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassAccuracy:
    """Accuracy on a class.

    Attributes:
        name: name of the class.
        images: number of its images.
        right: number of images that are classified right.
    """

    name: str
    images: int
    right: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedEvaluation:
    """Accuracy of a trained model on a part of a data set.

    Attributes:
        trained: folder of the training.
        data: name of the data set, or its folder.
        part: part that was evaluated.
        images: number of images.
        accuracy: fraction classified right.
        mean_class_accuracy: mean over classes of the fraction of a class classified right.
        seconds: duration, with reading and decoding of the images.
        classes: accuracy by class.
        weights: origin of the weights that the training began with.
    """

    trained: str
    data: str
    part: Part
    images: int
    accuracy: float
    mean_class_accuracy: float
    seconds: float
    classes: tuple[ClassAccuracy, ...]
    weights: str

    @classmethod
    def of_images(
        cls,
        is_right: torch.Tensor,
        labels: torch.Tensor,
        class_names: Sequence[str],
        *,
        trained: str,
        data: str,
        part: Part,
        seconds: float,
        weights: str,
    ) -> Self:
        """Count the right answers of each class.

        Args:
            is_right: [images] whether each image is classified right.
            labels: [images] class of each image.
            class_names: name of each class.
            trained: see the attributes.
            data: see the attributes.
            part: see the attributes.
            seconds: see the attributes.
            weights: see the attributes.
        """
        counts, right = count_by_class(is_right, labels, len(class_names))
        return cls(
            trained=trained,
            data=data,
            part=part,
            images=len(labels),
            accuracy=int(is_right.sum()) / len(labels),
            mean_class_accuracy=mean_class_accuracy(counts, right),
            seconds=seconds,
            classes=tuple(
                ClassAccuracy(name=name, images=int(counts[i]), right=int(right[i]))
                for i, name in enumerate(class_names)
            ),
            weights=weights,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``evaluate --json`` prints."""
        return {"schema": EVALUATION_SCHEMA, **asdict(self)}


def evaluate_trained(
    trained: TrainedFolder,
    *,
    data: str | None = None,
    part: Part = "test",
    on_progress: Callable[[str, float], None] = lambda text, done: None,
) -> TrainedEvaluation:
    """Return the accuracy of a trained model.

    Args:
        trained: the model.
        data: data set or folder; None for that of the training.
        part: part of the data set.
        on_progress: called with (activity, fraction done).

    Raises:
        InputError: the data cannot be read, or has other classes than the training.
    """
    began = time.perf_counter()
    spec = data or str(trained.plan.provenance.get("data") or trained.result.data["name"])
    images = load_data_for(trained.plan.candidate.workload, spec)
    names = trained.result.class_names or images.class_names
    check_classes(images, names, trained=trained.folder)
    chosen = images.test if part == "test" else images.selection
    is_right = right_answers(
        trained.model,
        chosen,
        batch_size=trained.batch_size,
        device=trained.device,
        precision=trained.precision,
        on_progress=lambda done: on_progress("classifying images", done / len(chosen)),
    )
    return TrainedEvaluation.of_images(
        is_right,
        torch.as_tensor(chosen.labels),
        names,
        trained=str(trained.folder),
        data=spec,
        part=part,
        seconds=time.perf_counter() - began,
        weights=trained.result.weights.kind,
    )


def check_classes(images: ImageData, names: Sequence[str], *, trained: Path) -> None:
    """Refuse images whose classes are not those of a training, in the same order.

    Args:
        images: the images.
        names: name of each class of the training.
        trained: folder of the training, for the error message.

    Raises:
        InputError: the classes or their order are others.
    """
    if tuple(images.class_names) != tuple(names):
        other = sorted({*images.class_names} ^ {*names}) or list(images.class_names)
        raise InputError(
            f"{images.source.name} has other classes than {trained} was trained on "
            f"({other[0]!r}); give images of the same classes"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifiedImage:
    """The classes of an image file.

    Attributes:
        file: the file.
        classes: most probable classes with the model's probability, the best first; empty if the
            file cannot be read.
        error: reason why it cannot be read; None if it can.
    """

    file: str
    classes: tuple[tuple[str, float], ...] = ()
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "file": self.file,
            "class": self.classes[0][0] if self.classes else None,
            "classes": [{"name": name, "probability": p} for name, p in self.classes],
            "error": self.error,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageForward:
    """A model that classifies images, and how it is run.

    Attributes:
        model: the model in evaluation mode, on ``device``.
        device: ``cpu`` or ``cuda``.
        precision: precision of the forward.
        batch_size: images of a forward.
    """

    model: nn.Module
    device: DeviceKind
    precision: str
    batch_size: int


def classify_files(
    trained: TrainedFolder, files: Sequence[Path], *, top: int = 1
) -> list[ClassifiedImage]:
    """Return the most probable classes of image files.

    Args:
        trained: the model.
        files: image files, in any format that Pillow reads.
        top: number of classes for each image.

    Raises:
        InputError: the folder is of a version that recorded no classes and no transform.
    """
    transform, names = trained.result.transform, trained.result.class_names
    if transform is None or not names:
        raise InputError(
            f"{trained.folder} records neither class names nor a transform (an earlier version "
            "trained it); train again to classify with it"
        )
    forward = ImageForward(
        model=trained.model,
        device=trained.device,
        precision=trained.precision,
        batch_size=trained.batch_size,
    )
    return classify_images(forward, files, transform=transform, class_names=names, top=top)


def classify_images(
    forward: ImageForward,
    files: Sequence[Path],
    *,
    transform: InputTransform,
    class_names: Sequence[str],
    top: int,
) -> list[ClassifiedImage]:
    """Return the most probable classes of image files.

    Args:
        forward: the model, and how it is run.
        files: image files, in any format that Pillow reads.
        transform: transform from an image to the model's input.
        class_names: name of each class.
        top: number of classes for each image.
    """
    errors = {file: error for file in files if (error := _error_of(file)) is not None}
    readable = [file for file in files if file not in errors]
    image_set = ImageSet(
        images=readable,
        labels=[0] * len(readable),
        input_format=InputFormat(
            image_size=transform.image_size, mean=transform.mean, std=transform.std
        ),
        crop=CROP_RULES[transform.crop],
        mirror=False,
    )
    found = dict(zip(readable, _probabilities(forward, image_set), strict=True))
    return [
        ClassifiedImage(file=str(file), error=errors[file])
        if file in errors
        else ClassifiedImage(file=str(file), classes=_top_classes(found[file], class_names, top))
        for file in files
    ]


def _error_of(file: Path) -> str | None:
    try:
        open_image(file)
    except InputError as error:
        return str(error)
    return None


def _probabilities(forward: ImageForward, images: ImageSet) -> list[torch.Tensor]:
    """Return the probability of every class [classes], for each image."""
    rows: list[torch.Tensor] = []
    for first in range(0, len(images), forward.batch_size):
        last = min(len(images), first + forward.batch_size)
        batch = torch.stack([images[i][0] for i in range(first, last)])
        with torch.no_grad(), autocast(forward.precision, forward.device):
            logits = forward.model(batch.to(forward.device))
        rows += list(logits.float().softmax(dim=1).cpu())
    return rows


def _top_classes(
    row: torch.Tensor, names: Sequence[str], top: int
) -> tuple[tuple[str, float], ...]:
    values, indices = row.topk(min(top, len(names)))
    return tuple((names[int(i)], float(value)) for value, i in zip(values, indices, strict=True))
