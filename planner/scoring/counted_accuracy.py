"""Accuracies that were counted on a number of images: their interval, and digits that it supports.

The interval is the one of Agresti and Coull (1998, The American Statistician 52, 119-126) at 95 %:
two right and two wrong answers are added, then 1.96 standard errors go to each side. From 10 images
on it holds a share of 50 to 97 % in at least 92 % of cases.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from planner.scoring.standard_error import ADDED_IMAGES, ADDED_RIGHT, standard_error

INTERVAL_COVERAGE = 0.95
"""Coverage of the interval: adding four images is made for it."""


def counted_interval(accuracy: float, *, images: int) -> tuple[float, float]:
    """Return the ends of the interval of an accuracy, as fractions in [0, 1].

    Args:
        accuracy: fraction of the images classified right.
        images: number of images.
    """
    centre = (accuracy * images + ADDED_RIGHT) / (images + ADDED_IMAGES)
    half = NormalDist().inv_cdf((1 + INTERVAL_COVERAGE) / 2) * standard_error(
        accuracy, images=images
    )
    # an accuracy of 0 or 1 is in its own interval
    return max(0.0, min(centre - half, accuracy)), min(1.0, max(centre + half, accuracy))


def counted_text(accuracy: float, *, images: int) -> str:
    """Return an accuracy in percent with its interval, such as ``92 % (95 % interval 89 to 94)``.

    The digits end where half the interval begins: none after the point from 1 point on.
    """
    low, high = counted_interval(accuracy, images=images)
    digits = supported_digits(100 * (high - low) / 2)
    shown, low_shown, high_shown = (f"{100 * v:.{digits}f}" for v in (accuracy, low, high))
    return f"{shown} % ({100 * INTERVAL_COVERAGE:.0f} % interval {low_shown} to {high_shown})"


def supported_digits(error: float) -> int:
    """Return the digits after the point of a number with an error: up to the first of the error."""
    if not error > 0:
        return 4
    return min(4, max(0, -math.floor(math.log10(error))))
