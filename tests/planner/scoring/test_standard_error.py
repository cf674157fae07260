"""The standard error of an accuracy, by hand and against a simulation."""

from __future__ import annotations

import math
import random

import pytest

from planner.scoring.standard_error import standard_error


@pytest.mark.parametrize(
    ("right", "images", "expected"),
    [(4, 4, math.sqrt(3 / 4 * 1 / 4 / 8)), (141, 143, 0.01342), (143, 143, 0.00955), (0, 1, 0.219)],
)
def test_it_is_that_of_agresti_and_coull(right: int, images: int, expected: float) -> None:
    assert standard_error(right / images, images=images) == pytest.approx(expected, rel=2e-3)


def test_an_accuracy_of_all_or_none_is_not_certain() -> None:
    for accuracy in (0.0, 1.0):
        assert standard_error(accuracy, images=200) == pytest.approx(0.0069, rel=2e-3)


def test_of_many_images_it_is_the_deviation_of_the_accuracy() -> None:
    rng, images = random.Random(0), 400
    drawn = [sum(rng.random() < 0.8 for _ in range(images)) / images for _ in range(1000)]
    mean = sum(drawn) / len(drawn)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in drawn) / len(drawn))
    assert standard_error(0.8, images=images) == pytest.approx(deviation, rel=0.05)
