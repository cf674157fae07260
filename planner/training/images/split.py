"""Division of the indices of labelled images into parts, within each class.

The parts depend on the labels and the seed alone. Each split draws from a generator of its own, so
a data set without parts has the same test images whether or not a selection part is taken out of
the rest.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from profiler.errors import InputError

TEST_SHARE = 0.2
"""Share of the images that test where a data set has no held-out part of its own."""

SELECTION_SHARE = 0.1
"""Share of the training images that select where a data set has no such part of its own."""

SMALLEST_SHARED_CLASS = 3
"""Training images from which a class gives at least one to the selection part."""


def split_off_test(
    labels: Sequence[int], seed: int, names: Sequence[str] | None = None
) -> tuple[list[int], list[int]]:
    """Split indices 80/20 within each class.

    Args:
        labels: class index of each image.
        seed: seed of the shuffle within each class.
        names: name of each class, for the error message.

    Returns:
        The indices of the training images and of the test images, each in order.

    Raises:
        InputError: a class has only one image.
    """
    train: list[int] = []
    test: list[int] = []
    for label, group in indices_by_label(labels).items():
        if len(group) < 2:
            name = names[label] if names is not None else str(label)
            raise InputError(
                f"class {name!r} has one image; add a second one, since one is kept for the test"
            )
        random.Random(f"{seed}/{label}").shuffle(group)
        count = max(1, round(TEST_SHARE * len(group)))
        test += group[:count]
        train += group[count:]
    return sorted(train), sorted(test)


def split_off_selection(labels: Sequence[int], seed: int) -> tuple[list[int], list[int]]:
    """Split indices 90/10 within each class.

    A class of at least ``SMALLEST_SHARED_CLASS`` images gives one or more. Smaller classes give
    none, because half of their images would be lost to the training. If all classes are smaller,
    the first class of two images gives one.

    Args:
        labels: class index of each training image.
        seed: seed of the shuffle within each class.

    Returns:
        The indices of the images to train on and of the selection images, each in order.

    Raises:
        InputError: no class has two images.
    """
    train: list[int] = []
    selection: list[int] = []
    groups = indices_by_label(labels)
    for label, group in groups.items():
        random.Random(f"{seed}/{label}/selection").shuffle(group)
        least = 1 if len(group) >= SMALLEST_SHARED_CLASS else 0
        count = max(least, round(SELECTION_SHARE * len(group)))
        selection += group[:count]
        train += group[count:]
    if not selection:
        spare = next((group for group in groups.values() if len(group) > 1), None)
        if spare is None:
            raise InputError(
                "no class has two training images; add images, since at least one is taken out to "
                "select the best checkpoint"
            )
        selection = spare[:1]
        train.remove(spare[0])
    return sorted(train), sorted(selection)


def indices_by_label(labels: Sequence[int]) -> dict[int, list[int]]:
    """Return the indices of each label in order, by ascending label."""
    groups: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        groups.setdefault(label, []).append(index)
    return dict(sorted(groups.items()))
