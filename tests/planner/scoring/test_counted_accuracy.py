"""Intervals of counted accuracies against the binomial distribution, and the digits shown."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.scoring.counted_accuracy import counted_interval, counted_text, supported_digits


@pytest.mark.parametrize("images", [10, 20, 100, 360])
@pytest.mark.parametrize("share", [0.5, 0.8, 0.9, 0.97])
def test_the_interval_holds_the_true_share_about_as_often_as_stated(
    share: float, images: int
) -> None:
    covered = 0.0
    for right in range(images + 1):
        low, high = counted_interval(right / images, images=images)
        if low <= share <= high:
            covered += math.comb(images, right) * share**right * (1 - share) ** (images - right)
    assert covered >= 0.92


@given(st.integers(1, 10_000), st.data())
def test_an_interval_lies_within_its_bounds(images: int, data: st.DataObject) -> None:
    accuracy = data.draw(st.integers(0, images)) / images
    low, high = counted_interval(accuracy, images=images)
    assert 0 <= low <= accuracy <= high <= 1
    assert low < high


def test_the_text_has_the_digits_of_its_interval() -> None:
    assert counted_text(0.95, images=20) == "95 % (95 % interval 74 to 100)"
    assert counted_text(0.9, images=10_000) == "90.0 % (95 % interval 89.4 to 90.6)"
    assert counted_text(1.0, images=12).startswith("100 % (95 % interval ")
    assert [supported_digits(error) for error in (12.0, 1.0, 0.3, 0.02, 1e-9, 0.0)] == [
        0, 0, 1, 2, 4, 4
    ]  # fmt: skip
