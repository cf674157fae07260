"""Load a named data set or a folder of images, split into training and held-out images.

    digits      scikit-learn's 1,797 handwritten digits of 8x8 pixels; needs no network
    cifar100    torchvision, 50,000 + 10,000 images of 32x32 pixels, downloaded once
    dtd         torchvision, Describable Textures: train + val (3,760) against test (1,880)
    DIR         DIR/train and DIR/val (or valid, test), or class folders directly in DIR
                (planner/training/images/image_folder.py)

The transforms are those of the code of arXiv 2607.02158. CIFAR-100 is resized, and mirrored for
training. DTD and folders get a random crop of 80-100 % of the area and are mirrored for training;
held out, they get the crop of Resize(255) and CenterCrop(224). Digits are only resized, because a
mirrored digit is another shape.
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

from planner.training.images.crops import whole_image
from planner.training.images.image_files import error_text
from planner.training.images.image_folder import data_from_files, read_folder
from planner.training.images.image_set import (
    DataSource,
    ImageData,
    ImageSet,
    InputFormat,
    stratified_split,
)
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
        seed: seed of the split, where the data set has no held-out part.

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
            return _load_cifar100(input_format, root)
        case "dtd":
            return _load_dtd(input_format, root)
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
    train, held_out = stratified_split(labels, seed)
    images = ImageSet(
        images=list(pixels),
        labels=labels,
        input_format=input_format,
        crop=whole_image,
        mirror=False,
    )
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


def _load_cifar100(input_format: InputFormat, root: Path) -> ImageData:
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
    return ImageData(
        train=sets[0],
        held_out=sets[1],
        class_names=tuple(train.classes),
        source=DataSource(
            name="cifar100",
            train_images=len(train),
            held_out_images=len(test),
            fingerprint=_hash_pixels((train.data, train.targets), (test.data, test.targets)),
        ),
    )


def _load_dtd(input_format: InputFormat, root: Path) -> ImageData:
    from torchvision.datasets import DTD

    with _download_errors("dtd", root):
        # With the identity as its loader, DTD's items are (file, label) and nothing is decoded.
        parts = [
            DTD(str(root), split=split, download=True, loader=Path)
            for split in ("train", "val", "test")
        ]
    train, val, test = ([part[i] for i in range(len(part))] for part in parts)
    return data_from_files(
        "dtd",
        input_format,
        class_names=parts[0].classes,
        train=[*train, *val],
        held_out=test,
        root=root,
    )


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
