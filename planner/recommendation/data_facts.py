"""The properties of a data set that the search needs, before anything is searched."""

from __future__ import annotations

from dataclasses import dataclass, replace

from planner.training.images.image_set import DataSource
from planner.training.images.load import load_data
from planner.training.images.registry import find_named

FACTS_IMAGE_SIZE = 224
"""Image size of a request that only needs the facts; they do not depend on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """Classes and images of a data set or folder.

    Attributes:
        num_classes: number of classes.
        train_images: number of training images, those of the selection part not included.
        set_apart_images: number of selection images that are part of the whole training set.
        source: origin of a folder's images; None for a named data set.
        images_per_class: training images of each class of a folder, by label; empty for a named
            data set, whose classes are about equally frequent.
    """

    num_classes: int
    train_images: int
    set_apart_images: int = 0
    source: DataSource | None = None
    images_per_class: tuple[int, ...] = ()


def data_facts(data: str, *, image_size: int, is_used: bool) -> DataFacts:
    """Return the properties of a data set or folder.

    Args:
        data: name of a data set, or a folder.
        image_size: height and width of the images in pixels.
        is_used: whether candidates will be run on the images. A named data set is then loaded, and
            downloaded if need be, before the search; otherwise it need not be here.

    Raises:
        InputError: the folder or the data set cannot be read.
        UsageError: the name's text after the colon is malformed.
    """
    named = find_named(data)
    if named is not None:
        found, variant = named
        if found.check_variant is not None:
            found.check_variant(variant)
        if not is_used:
            size = found.size_of(variant)
            return DataFacts(
                num_classes=size.num_classes,
                train_images=size.train_images,
                set_apart_images=size.set_apart_images,
            )
    # Only the labels are read, so any normalisation will do.
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    images = load_data(data, image_size=image_size, mean=mean, std=std)
    facts = DataFacts(
        num_classes=images.num_classes,
        train_images=images.source.train_images,
        set_apart_images=len(images.selection_positions),
    )
    if named is not None:
        return facts
    return replace(
        facts,
        source=images.source,
        images_per_class=images.images_per_class,
    )
