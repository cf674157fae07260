"""Crop boxes: the centre crop for evaluation and the random resized crop for training."""

from __future__ import annotations

import random

from planner.training.image_set import Box

# the paper's code for DTD: Resize(255), then CenterCrop(224)
CENTRE_SHARE = 224 / 255

# the paper's code for DTD: RandomResizedCrop(scale=(0.8, 1)); ratio is torchvision's default
CROP_AREA = (0.8, 1.0)

CROP_RATIO = (3 / 4, 4 / 3)


def centre(width: int, height: int, rng: random.Random) -> Box:
    """The centre square, as Resize(255) and CenterCrop(224) leave it."""
    side = min(width, height) * CENTRE_SHARE
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_crop(width: int, height: int, rng: random.Random) -> Box:
    """A box of 80-100 % of the area with a ratio of 3:4 to 4:3 (RandomResizedCrop).

    A ratio is drawn ten times at most; then the largest centred box of an allowed ratio is used.
    """
    low, high = CROP_RATIO
    for _ in range(10):
        area = width * height * rng.uniform(*CROP_AREA)
        ratio = low * (high / low) ** rng.random()  # uniform in its logarithm
        w, h = (area * ratio) ** 0.5, (area / ratio) ** 0.5
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return left, top, left + w, top + h
    w, h = min(width, height * high), min(height, width / low)
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h
