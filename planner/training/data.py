"""Images to train on and images held out, ready for a model.

    digits      scikit-learn's 1,797 handwritten digits of 8x8 pixels; needs no network
    cifar100    torchvision, 50,000 + 10,000 images of 32x32 pixels, downloaded once
    dtd         torchvision, Describable Textures: train + val (3,760) against test (1,880)
    DIR         DIR/train and DIR/val (or valid, test), or class folders directly in DIR

Without a held-out part of its own a data set is split 80/20 within each class by a seeded shuffle.
The transforms are those of the code of arXiv:2607.02158: CIFAR is resized and mirrored; DTD and
folders get a random crop of 80-100 % of the area and are mirrored, their held-out images lose the
border that Resize(255) and CenterCrop(224) would cut; digits are resized only, since a mirrored
digit is another shape. Every transform is thus a box to cut out, a bilinear resize and perhaps a
mirror, done by Pillow (enlarging digits in batches in torch was tried: 8 ms instead of 13 ms for 32
images, not worth a second path).

Every random choice for a training image follows from a number the loader draws for it, so batches
depend on the loader's seed and epoch alone, never on a global generator. ``dataset[i]`` with a
plain index uses the index itself as that number.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import socket
import sys
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from planner.training.image_folder import from_files, read_folder
from planner.training.image_set import (
    DataSource,
    ImageData,
    ImageShape,
    one_line,
    stratified_split,
    triple,
    whole,
)
from profiler.errors import InputError

if TYPE_CHECKING:
    from planner.training.image_set import Pixels

DOWNLOAD_TIMEOUT_SECONDS = 20.0


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
        spec: ``digits``, ``cifar100``, ``dtd`` or a folder.
        image_size: height and width the model wants.
        mean: per channel, from the model's pretrained configuration.
        std: per channel, likewise.
        data_root: where downloads go; ``$BUDGETPLAN_DATA`` or ``~/.cache/budgetplan/data``.
        seed: of the split, where the data set has none of its own.

    Raises:
        InputError: the data cannot be read or downloaded.
        UsageError: a size or a normalisation that makes no sense.
    """
    shape = ImageShape(image_size=image_size, mean=triple("mean", mean), std=triple("std", std))
    root = data_root if data_root is not None else default_data_root()
    match spec:
        case "digits":
            return _digits(shape, seed)
        case "cifar100":
            return _cifar100(shape, root)
        case "dtd":
            return _dtd(shape, root)
    return read_folder(spec, shape, seed)


def default_data_root() -> Path:
    """Return where downloaded data sets are kept."""
    named = os.environ.get("BUDGETPLAN_DATA")
    return Path(named) if named else Path.home() / ".cache" / "budgetplan" / "data"


# ---- named data sets ---------------------------------------------------------------------------


def _digits(shape: ImageShape, seed: int) -> ImageData:
    import numpy as np
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # sixteen levels of ink: 16 is white
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    labels = [int(label) for label in bunch.target]
    train, held_out = stratified_split(labels, seed)
    images = shape.of(list(pixels), labels, frame=whole, mirror=False)
    return ImageData(
        train=images.select(train),
        held_out=images.select(held_out),
        class_names=tuple(str(name) for name in bunch.target_names),
        source=DataSource(
            name="digits",
            train_images=len(train),
            held_out_images=len(held_out),
            fingerprint=_hash_pixels((pixels, labels)),
        ),
    )


def _cifar100(shape: ImageShape, root: Path) -> ImageData:
    from torchvision.datasets import CIFAR100

    with _downloading("cifar100", root):
        train, test = (CIFAR100(str(root), train=part, download=True) for part in (True, False))
    return ImageData(
        train=shape.of(list(train.data), train.targets, frame=whole, mirror=True),
        held_out=shape.of(list(test.data), test.targets, frame=whole, mirror=False),
        class_names=tuple(train.classes),
        source=DataSource(
            name="cifar100",
            train_images=len(train),
            held_out_images=len(test),
            fingerprint=_hash_pixels((train.data, train.targets), (test.data, test.targets)),
        ),
    )


def _dtd(shape: ImageShape, root: Path) -> ImageData:
    from torchvision.datasets import DTD

    with _downloading("dtd", root):
        # the loader is the identity, so that an item is a file and its label
        parts = [
            DTD(str(root), split=split, download=True, loader=Path)
            for split in ("train", "val", "test")
        ]
    train, val, test = ([part[i] for i in range(len(part))] for part in parts)
    return from_files(
        "dtd",
        shape,
        class_names=parts[0].classes,
        train=[*train, *val],
        held_out=test,
        root=root,
    )


@contextlib.contextmanager
def _downloading(name: str, root: Path) -> Iterator[None]:
    """Keep torchvision's messages off stdout, bound its waits, and turn failure into one line."""
    waited = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's remarks on CIFAR's old pickles
            yield
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError) as error:
        raise InputError(
            f"{name} is not in {root} and cannot be downloaded ({one_line(error)}); "
            "use --data digits, a folder of class folders, or copy the data set there"
        ) from error
    finally:
        socket.setdefaulttimeout(waited)


def _hash_pixels(*parts: tuple[Pixels, Sequence[int]]) -> str:
    digest = hashlib.sha256()
    for pixels, labels in parts:
        digest.update(repr(pixels.shape).encode())
        digest.update(pixels.tobytes())
        digest.update(repr(list(labels)).encode())
    return digest.hexdigest()
