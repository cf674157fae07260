"""The transform that a record keeps of a data set's test images."""

from __future__ import annotations

from planner.training.history import InputTransform
from planner.training.images.crops import centre_crop
from planner.training.images.image_set import ImageData


def transform_of(images: ImageData) -> InputTransform:
    """Return the transform of the test images."""
    form = images.test.input_format
    return InputTransform(
        image_size=form.image_size,
        mean=(form.mean[0], form.mean[1], form.mean[2]),
        std=(form.std[0], form.std[1], form.std[2]),
        crop="centre" if images.test.crop is centre_crop else "whole",
    )
