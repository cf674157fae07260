"""The alternative on smaller images."""

from __future__ import annotations

import pytest

from planner.recommendation.smaller_images import LARGEST_EDGE_SHARE, smaller_size


@pytest.mark.parametrize(
    ("size", "patch", "expected"),
    [(224, 16, 160), (224, None, 160), (224, 14, 168), (384, 32, 288), (518, 14, 378),
     (128, 16, 96), (96, None, None), (32, 4, None)],
)  # fmt: skip
def test_smaller_sizes_are_divided_by_patches_and_strides(
    size: int, patch: int | None, expected: int | None
) -> None:
    assert smaller_size(size, patch=patch) == expected
    assert expected is None or expected <= LARGEST_EDGE_SHARE * size


@pytest.mark.parametrize(("patch", "expected"), [(14, 56), (16, 32), (None, 32)])
def test_advice_goes_down_to_a_quarter_in_whole_patches(patch: int | None, expected: int) -> None:
    assert smaller_size(224, patch=patch, share=0.25, least=1) == expected
