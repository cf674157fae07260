"""The alternative on smaller images."""

from __future__ import annotations

import pytest

from planner.recommendation.smaller_images import smaller_size


@pytest.mark.parametrize(
    ("size", "patch", "expected"),
    [(224, 16, 160), (224, None, 160), (224, 14, 168), (384, 32, 288), (518, 14, 378),
     (128, 16, 96), (96, None, None), (32, 4, None)],
)  # fmt: skip
def test_smaller_sizes_are_divided_by_patches_and_strides(
    size: int, patch: int | None, expected: int | None
) -> None:
    assert smaller_size(size, patch=patch) == expected


@pytest.mark.parametrize("patch", [None, 4, 8, 14, 16, 32])
def test_a_smaller_size_is_the_largest_of_three_quarters(patch: int | None) -> None:
    """Strides of 32 divide it too, unless the patches are of another grid, such as 14."""
    has_strides = patch != 14
    for size in range(32, 600):
        fitting = [
            edge
            for edge in range(96, size)
            if 4 * edge <= 3 * size
            and edge % (patch or 1) == 0
            and (edge % 32 == 0 or not has_strides)
        ]
        assert smaller_size(size, patch=patch) == max(fitting, default=None), size


@pytest.mark.parametrize(("patch", "expected"), [(14, 56), (16, 32), (None, 32)])
def test_advice_goes_down_to_a_quarter_in_whole_patches(patch: int | None, expected: int) -> None:
    assert smaller_size(224, patch=patch, share=0.25, least=1) == expected
