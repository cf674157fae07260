"""The standard error of an accuracy that was counted on a number of images."""

from __future__ import annotations

import math

ADDED_RIGHT, ADDED_IMAGES = 2, 4
"""Right answers and images that are added, or the error of 100 % would be 0."""


def standard_error(accuracy: float, *, images: int) -> float:
    """Return the standard error of an accuracy, as Agresti and Coull (1998) adjust it.

    With p = (right + 2) / (n + 4) it is sqrt(p (1 - p) / (n + 4)).

    Args:
        accuracy: fraction of the images classified right.
        images: number of images, n.
    """
    counted = images + ADDED_IMAGES
    share = (accuracy * images + ADDED_RIGHT) / counted
    return math.sqrt(share * (1 - share) / counted)
