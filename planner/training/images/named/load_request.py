"""The request that every loader of a named data set gets, and checks that loaders share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from planner.training.images.crops import whole_image
from planner.training.images.image_set import ImageSet, InputFormat
from profiler.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from planner.training.images.image_files import Pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class SetSize:
    """Size of a data set.

    Attributes:
        num_classes: number of classes.
        train_images: number of training images, those of the selection part not included.
        set_apart_images: number of selection images that are part of the whole training set.
    """

    num_classes: int
    train_images: int
    set_apart_images: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """Request for a named data set.

    Attributes:
        input_format: size and normalisation of the images.
        root: folder of data sets that are downloaded or copied there.
        seed: seed of the split, where the data set lacks a part.
        variant: text after the colon of the name; empty without one.
    """

    input_format: InputFormat
    root: Path
    seed: int
    variant: str = ""

    def whole_images(self, pixels: Pixels, labels: Sequence[int], *, mirror: bool) -> ImageSet:
        """Return uncropped images.

        Args:
            pixels: bytes of shape [N, H, W] or [N, H, W, 3].
            labels: class index of each image.
            mirror: whether images are mirrored half of the time.
        """
        return ImageSet(
            images=list(pixels),
            labels=list(labels),
            input_format=self.input_format,
            crop=whole_image,
            mirror=mirror,
        )


def check_arrays(
    pixels: np.ndarray[Any, Any],
    labels: np.ndarray[Any, Any],
    *,
    shape: tuple[int, ...],
    classes: int,
    place: Path,
) -> None:
    """Check arrays of images and labels that were read from files.

    Args:
        pixels: images.
        labels: labels.
        shape: shape of an image.
        classes: number of classes.
        place: file or folder for the error message.

    Raises:
        InputError: another shape or type, or a label out of range.
    """
    if pixels.dtype != "uint8" or pixels.shape[1:] != shape or not len(pixels):
        raise InputError(
            f"expected images of {' x '.join(map(str, shape))} bytes in {place}, "
            f"got {pixels.dtype} of shape {pixels.shape}"
        )
    if labels.dtype.kind not in "iu" or labels.shape != pixels.shape[:1]:
        raise InputError(
            f"expected {len(pixels)} integer labels in {place}, "
            f"got {labels.dtype} of shape {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"labels in {place} must be from 0 to {classes - 1}, "
            f"got {labels.min()} to {labels.max()}"
        )


def hash_pixels(*parts: tuple[Pixels, Sequence[int]]) -> str:
    """Return the SHA-256 of the pixels and labels of each part."""
    digest = hashlib.sha256()
    for pixels, labels in parts:
        digest.update(repr(pixels.shape).encode())
        digest.update(pixels.tobytes())
        digest.update(repr(list(labels)).encode())
    return digest.hexdigest()


def check_files(paths: Iterable[Path], *, remedy: str) -> None:
    """Check that the files of a data set are there, before anything is read.

    Args:
        paths: the files that its loader begins with.
        remedy: where to get the data set, for the message.

    Raises:
        InputError: a file is missing.
    """
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        raise InputError(f"{missing} does not exist; {remedy}")


def safe_image_path(name: str, origin: Path) -> PurePosixPath:
    """Return the path of an image that a file names; refuse one that leaves the folder of images.

    Args:
        name: path as the file has it.
        origin: the file, for the error message.

    Raises:
        InputError: the path is absolute, empty or leaves its folder.
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise InputError(f"{origin} names the file {name!r}, outside of the folder of images")
    return path
