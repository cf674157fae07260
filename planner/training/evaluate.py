"""Accuracy of a model on labelled images.

evaluate_images       over all images, and as the mean over classes
right_answers         which images are classified right
count_by_class        images, and those classified right, of each class
mean_class_accuracy   mean over classes of the fraction classified right
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from planner.training.images.batches import LabelledSet, batch_loader
from planner.training.images.image_set import ImageSet
from planner.training.training_device import autocast
from profiler.records import DeviceKind

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Accuracy of a model on labelled images.

    Attributes:
        accuracy: fraction of the images classified right.
        mean_class_accuracy: mean over classes of the fraction of a class's images classified right;
            a class without images does not count. Where classes are of different sizes, a model
            that neglects small ones has a smaller value here.
        images: number of images.
    """

    accuracy: float
    mean_class_accuracy: float
    images: int


def evaluate_images(
    model: nn.Module,
    image_set: ImageSet,
    *,
    batch_size: int,
    device: DeviceKind = "cpu",
    precision: str = "fp32",
) -> Evaluation:
    """Return the accuracy of a model on images.

    The model is evaluated in evaluation mode and left in the mode that it had.

    Args:
        model: maps images [batch, 3, S, S] to logits [batch, classes].
        image_set: at least one image with its label.
        batch_size: images per forward.
        device: device of the model.
        precision: ``fp32``, or autocast to ``bf16`` or ``fp16``.
    """
    is_right = right_answers(
        model, image_set, batch_size=batch_size, device=device, precision=precision
    )
    labels = torch.as_tensor(image_set.labels)
    counts, right = count_by_class(is_right, labels, int(labels.max()) + 1)
    return Evaluation(
        accuracy=int(is_right.sum()) / len(image_set),
        mean_class_accuracy=mean_class_accuracy(counts, right),
        images=len(image_set),
    )


def count_by_class(
    is_right: torch.Tensor, labels: torch.Tensor, classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the numbers of images and of right answers in each class, both [classes].

    Args:
        is_right: [images] whether each image is classified right.
        labels: [images] class of each image.
        classes: number of classes.
    """
    return labels.bincount(minlength=classes), labels[is_right].bincount(minlength=classes)


def mean_class_accuracy(counts: torch.Tensor, right: torch.Tensor) -> float:
    """Return the mean over classes of the fraction classified right, as in ``Evaluation``.

    Args:
        counts: [classes] images of each class.
        right: [classes] images classified right.
    """
    seen = counts > 0
    return float((right[seen].double() / counts[seen]).mean())


def right_answers(
    model: nn.Module,
    image_set: LabelledSet,
    *,
    batch_size: int,
    device: DeviceKind = "cpu",
    precision: str = "fp32",
    on_progress: Callable[[int], None] = lambda done: None,
) -> torch.Tensor:
    """Return whether each image is classified right, as booleans [images] on the host.

    The model is evaluated in evaluation mode and left in the mode that it had.

    Args:
        model: maps batches of the set to logits [batch, classes].
        image_set: at least one image, or its features, with its label.
        batch_size: images per forward.
        device: device of the model.
        precision: ``fp32``, or autocast to ``bf16`` or ``fp16``.
        on_progress: called after each batch with the number of images done.
    """
    was_training = model.training
    model.eval()
    parts: list[torch.Tensor] = []
    batches = batch_loader(image_set, batch_size=batch_size, shuffle=False, seed=0, drop_last=False)
    try:
        with torch.no_grad(), autocast(precision, device):
            for images, labels in batches:
                predicted = model(images.to(device)).argmax(dim=1)
                parts.append(predicted == labels.to(device))
                on_progress(min(len(parts) * batch_size, len(image_set)))
    finally:
        model.train(was_training)
    return torch.cat(parts).cpu()  # once, so that the device is not waited for at each batch
