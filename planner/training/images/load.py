"""Load a named data set or a folder of images, in three parts: train, selection and test.

    NAME    a data set of planner/training/images/registry.py, such as digits
    DIR     class folders in DIR/train, DIR/val and DIR/test, or directly in DIR
            (planner/training/images/image_folder.py)

A part that a data set lacks is taken out of its training images (planner/training/images/split.py).

The transforms are those of the code of arXiv 2607.02158. CIFAR is resized, and mirrored for
training. DTD and folders get a random crop of 80-100 % of the area and are mirrored for training;
for selection and test, they get the crop of Resize(255) and CenterCrop(224). Digits are only
resized, because a mirrored digit is another shape.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from planner.training.images.image_folder import read_folder
from planner.training.images.image_set import ImageData, InputFormat
from planner.training.images.named.load_request import LoadRequest
from planner.training.images.registry import find_named, folder_of


def load_data(
    spec: str,
    *,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    data_root: Path | None = None,
    seed: int = 0,
) -> ImageData:
    """Load a named data set or a folder of class folders.

    Args:
        spec: name of a data set, or a folder; ``~`` is expanded.
        image_size: height and width of the model's input in pixels.
        mean: mean of each channel, from the model's pretrained configuration.
        std: standard deviation of each channel, from the same configuration.
        data_root: folder of data sets that are downloaded or copied there; ``$BUDGETPLAN_DATA`` or
            ``~/.cache/budgetplan/data`` if None.
        seed: seed of the split, where the data set lacks a part.

    Raises:
        InputError: the data cannot be read or downloaded.
        UsageError: the size or the normalisation is out of its domain, or the name's variant is.
    """
    input_format = InputFormat(image_size=image_size, mean=tuple(mean), std=tuple(std))
    named = find_named(spec)
    if named is not None:
        data, variant = named
        root = data_root if data_root is not None else default_data_root()
        return data.load(
            LoadRequest(input_format=input_format, root=root, seed=seed, variant=variant)
        )
    folder_of(spec)
    return read_folder(spec, input_format, seed)


def obtain_data(spec: str) -> None:
    """Check that the images of a data set or folder are here; download those that can be.

    Args:
        spec: name of a data set, or a folder.

    Raises:
        InputError: the files are missing and cannot be downloaded.
        UsageError: the name's text after the colon is malformed.
    """
    named = find_named(spec)
    if named is None:
        folder_of(spec)
        return
    data, variant = named
    data.obtain(default_data_root(), variant)


def default_data_root() -> Path:
    """Return the folder of data sets that are downloaded or copied there."""
    named = os.environ.get("BUDGETPLAN_DATA")
    return Path(named) if named else Path.home() / ".cache" / "budgetplan" / "data"
