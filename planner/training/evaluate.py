"""Accuracy of a model on held-out images."""

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
    dataset: ImageSet,
    *,
    batch_size: int,
    device: str = "cpu",
    precision: str = "fp32",
) -> float:
    """Return the fraction of images that the model classifies right, in evaluation mode."""
    was_training = model.training
    model.eval()
    right = torch.zeros((), dtype=torch.long, device=device)
    batches = batch_loader(dataset, batch_size=batch_size, shuffle=False, seed=0, drop_last=False)
    try:
        with torch.no_grad(), autocast(precision, device_type(device)):
            for images, labels in batches:
                predicted = model(images.to(device)).argmax(dim=1)
                right += (predicted == labels.to(device)).sum()
    finally:
        model.train(was_training)
    return right.item() / len(dataset)
