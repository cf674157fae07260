"""Crop rules: the box of an image that the model is given.

A box is (left, top, right, bottom) in pixels; Pillow resizes a box with fractional corners exactly.
The rules follow the code of arXiv 2607.02158.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

Box = tuple[float, float, float, float]

CropRule = Callable[[int, int, random.Random], Box]
"""Maps width and height in pixels, and a random generator, to the box to cut out."""

CENTRE_SHARE = 224 / 255
"""Share of the shorter side that ``Resize(255)`` and ``CenterCrop(224)`` keep (held-out DTD)."""

CROP_AREA = (0.8, 1.0)
"""Share of the area that ``RandomResizedCrop(scale=(0.8, 1))`` keeps (DTD for training)."""

CROP_RATIO = (3 / 4, 4 / 3)
"""Width over height of a random crop: torchvision's default."""

CROP_ATTEMPTS = 10
"""Number of boxes drawn before a centred box is used, as in torchvision's ``make_params``."""


def whole_image(width: int, height: int, rng: random.Random) -> Box:
    """Return the box of the whole image."""
    return 0, 0, width, height


def centre_crop(width: int, height: int, rng: random.Random) -> Box:
    """Return the centred square that ``Resize(255)`` and ``CenterCrop(224)`` keep."""
    side = min(width, height) * CENTRE_SHARE
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_crop(width: int, height: int, rng: random.Random) -> Box:
    """Return a box of 80-100 % of the area, 3:4 to 4:3 in shape (``RandomResizedCrop``).

    If no drawn box fits into the image, the largest centred box of an allowed shape is returned.
    """
    low, high = CROP_RATIO
    for _ in range(CROP_ATTEMPTS):
        area = width * height * rng.uniform(*CROP_AREA)
        ratio = low * (high / low) ** rng.random()  # uniform in the logarithm of the ratio
        w, h = (area * ratio) ** 0.5, (area / ratio) ** 0.5
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return left, top, left + w, top + h
    w, h = min(width, height * high), min(height, width / low)
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h


CROP_RULES: Mapping[str, CropRule] = {"whole": whole_image, "centre": centre_crop}
"""Rules without chance, for held-out images, by their name in the record of a training."""
