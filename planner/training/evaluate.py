"""Accuracy of a model on labelled images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from planner.training.images.batches import batch_loader
from planner.training.images.image_set import ImageSet
from planner.training.training_device import autocast, device_type

if TYPE_CHECKING:
    from torch import nn


def accuracy(
    model: nn.Module,
    image_set: ImageSet,
    *,
    batch_size: int,
    device: str = "cpu",
    precision: str = "fp32",
) -> float:
    """Return the fraction of images that the model classifies right.

    The model is evaluated in evaluation mode and left in the mode that it had.

    Args:
        model: maps images [batch, 3, S, S] to logits [batch, classes].
        image_set: images with labels.
        batch_size: images per forward.
        device: device of the model.
        precision: ``fp32``, or autocast to ``bf16`` or ``fp16``.
    """
    was_training = model.training
    model.eval()
    right = torch.zeros((), dtype=torch.long, device=device)
    batches = batch_loader(image_set, batch_size=batch_size, shuffle=False, seed=0, drop_last=False)
    try:
        with torch.no_grad(), autocast(precision, device_type(device)):
            for images, labels in batches:
                predicted = model(images.to(device)).argmax(dim=1)
                right += (predicted == labels.to(device)).sum()
    finally:
        model.train(was_training)
    return right.item() / len(image_set)
