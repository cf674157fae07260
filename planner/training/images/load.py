"""Load a named data set or a folder of images, in three parts: train, selection and test.

    digits      scikit-learn's 1,797 handwritten digits of 8x8 pixels; needs no network
    cifar100    torchvision, 50,000 + 10,000 images of 32x32 pixels, downloaded once
    dtd         torchvision, Describable Textures: train, val and test have 1,880 images each
    DIR         class folders in DIR/train, DIR/val and DIR/test, or directly in DIR
                (planner/training/images/image_folder.py)

A part that a data set lacks is taken out of its training images (planner/training/images/split.py).

The transforms are those of the code of arXiv 2607.02158. CIFAR-100 is resized, and mirrored for
training. DTD and folders get a random crop of 80-100 % of the area and are mirrored for training;
for selection and test, they get the crop of Resize(255) and CenterCrop(224). Digits are only
resized, because a mirrored digit is another shape.
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
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from planner.training.images.crops import whole_image
from planner.training.images.image_files import error_text
from planner.training.images.image_folder import data_from_files, read_folder
from planner.training.images.image_set import (
    DataSource,
    ImageData,
    ImageSet,
    InputFormat,
)
from planner.training.images.split import split_off_test
from profiler.errors import InputError

if TYPE_CHECKING:
    from planner.training.images.image_files import Pixels

DOWNLOAD_TIMEOUT_SECONDS = 20.0
"""Longest wait for one answer of a server."""


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
        image_size: height and width of the model's input in pixels.
        mean: mean of each channel, from the model's pretrained configuration.
        std: standard deviation of each channel, from the same configuration.
        data_root: folder for downloads; ``$BUDGETPLAN_DATA`` or ``~/.cache/budgetplan/data`` if
            None.
        seed: seed of the split, where the data set lacks a part.

    Raises:
        InputError: the data cannot be read or downloaded.
        UsageError: the size or the normalisation is out of its domain.
    """
    input_format = InputFormat(image_size=image_size, mean=tuple(mean), std=tuple(std))
    root = data_root if data_root is not None else default_data_root()
    match spec:
        case "digits":
            return _load_digits(input_format, seed)
        case "cifar100":
            return _load_cifar100(input_format, root, seed)
        case "dtd":
            return _load_dtd(input_format, root, seed)
    return read_folder(spec, input_format, seed)


def default_data_root() -> Path:
    """Return the folder for downloaded data sets."""
    named = os.environ.get("BUDGETPLAN_DATA")
    return Path(named) if named else Path.home() / ".cache" / "budgetplan" / "data"


def _load_digits(input_format: InputFormat, seed: int) -> ImageData:
    import numpy as np
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # 16 levels of ink
    labels = [int(label) for label in bunch.target]
    train, test = split_off_test(labels, seed)
    images = ImageSet(
        images=list(pixels),
        labels=labels,
        input_format=input_format,
        crop=whole_image,
        mirror=False,
    )
    return ImageData.take_selection(
        train=images.select(train),
        test=images.select(test),
        class_names=[str(name) for name in bunch.target_names],
        source=DataSource(
            name="digits",
            train_images=len(train),
            held_out_images=len(test),
            fingerprint=_hash_pixels((pixels, labels)),
        ),
        seed=seed,
    )


def _load_cifar100(input_format: InputFormat, root: Path, seed: int) -> ImageData:
    from torchvision.datasets import CIFAR100

    with _download_errors("cifar100", root):
        train, test = (CIFAR100(str(root), train=part, download=True) for part in (True, False))
    sets = [
        ImageSet(
            images=list(part.data),
            labels=part.targets,
            input_format=input_format,
            crop=whole_image,
            mirror=part is train,
        )
        for part in (train, test)
    ]
    return ImageData.take_selection(
        train=sets[0],
        test=sets[1],
        class_names=train.classes,
        source=DataSource(
            name="cifar100",
            train_images=len(train),
            held_out_images=len(test),
            fingerprint=_hash_pixels((train.data, train.targets), (test.data, test.targets)),
        ),
        seed=seed,
    )


def _load_dtd(input_format: InputFormat, root: Path, seed: int) -> ImageData:
    from torchvision.datasets import DTD

    with _download_errors("dtd", root):
        # With the identity as its loader, DTD's items are (file, label) and nothing is decoded.
        parts = [
            DTD(str(root), split=split, download=True, loader=Path)
            for split in ("train", "val", "test")
        ]
    train, val, test = ([part[i] for i in range(len(part))] for part in parts)
    data = data_from_files(
        "dtd",
        input_format,
        class_names=parts[0].classes,
        train=train,
        selection=val,
        test=test,
        root=root,
        seed=seed,
    )
    # The paper trains on train and val together.
    return replace(data, selection_positions=tuple(range(len(train), len(train) + len(val))))


@contextlib.contextmanager
def _download_errors(name: str, root: Path) -> Iterator[None]:
    """Keep torchvision's messages off stdout, bound its waits, and turn failure into one line."""
    previous_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy warns about CIFAR's old pickles
            yield
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError) as error:
        raise InputError(
            f"{name} is not in {root} and cannot be downloaded ({error_text(error)}); "
            "use --data digits, a folder of class folders, or copy the data set there"
        ) from error
    finally:
        socket.setdefaulttimeout(previous_timeout)


def _hash_pixels(*parts: tuple[Pixels, Sequence[int]]) -> str:
    digest = hashlib.sha256()
    for pixels, labels in parts:
        digest.update(repr(pixels.shape).encode())
        digest.update(pixels.tobytes())
        digest.update(repr(list(labels)).encode())
    return digest.hexdigest()
