"""Counts images outside of the training part that are copies of training images.

A model has seen such an image already, so its accuracy on them is too high. Copies are found by
content: files by their bytes, pixels in memory by their values. An image that was saved again, or
cropped, is not found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.training.images.image_files import Pixels

MOST_HASHED_BYTES = 2**30
"""Most bytes of files that are read for the comparison: seconds from a disk."""


def count_copies(
    train: Sequence[Path | Pixels], others: Iterable[Sequence[Path | Pixels]]
) -> int | None:
    """Return the number of images in the other parts that are copies of training images.

    Only files of equal size are read. None if these have more than ``MOST_HASHED_BYTES`` in all.

    Args:
        train: training images.
        others: images of the other parts.

    Raises:
        OSError: a file cannot be read.
    """
    held_out = [image for part in others for image in part]
    shared = {_size(image) for image in train} & {_size(image) for image in held_out}
    candidates = [image for image in train if _size(image) in shared]
    suspects = [image for image in held_out if _size(image) in shared]
    if sum(_file_bytes(image) for image in (*candidates, *suspects)) > MOST_HASHED_BYTES:
        return None
    known = {_content_hash(image) for image in candidates}
    return sum(_content_hash(image) in known for image in suspects)


def _size(image: Path | Pixels) -> Hashable:
    return image.stat().st_size if isinstance(image, Path) else image.shape


def _file_bytes(image: Path | Pixels) -> int:
    return image.stat().st_size if isinstance(image, Path) else 0


def _content_hash(image: Path | Pixels) -> bytes:
    content = image.read_bytes() if isinstance(image, Path) else image.tobytes()
    return hashlib.sha256(content).digest()
