"""Data sets that torchvision downloads: CIFAR-10, CIFAR-100 and Describable Textures."""

from __future__ import annotations

import contextlib
import http.client
import socket
import sys
import tarfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.training.images.image_files import error_text
from planner.training.images.image_folder import data_from_files
from planner.training.images.image_set import DataSource, ImageData
from planner.training.images.named.load_request import LoadRequest, hash_pixels
from profiler.errors import InputError

if TYPE_CHECKING:
    from planner.training.images.image_files import Pixels

DOWNLOAD_TIMEOUT_SECONDS = 20.0
"""Longest wait for one answer of a server."""


def load_cifar10(request: LoadRequest) -> ImageData:
    """Load 50,000 + 10,000 images of 32x32 pixels in 10 classes."""
    from torchvision.datasets import CIFAR10

    return _load_cifar("cifar10", CIFAR10, request)


def load_cifar100(request: LoadRequest) -> ImageData:
    """Load 50,000 + 10,000 images of 32x32 pixels in 100 classes."""
    from torchvision.datasets import CIFAR100

    return _load_cifar("cifar100", CIFAR100, request)


def obtain_cifar10(root: Path, variant: str) -> None:
    """Download CIFAR-10 unless it is there.

    Raises:
        InputError: it cannot be downloaded.
    """
    from torchvision.datasets import CIFAR10

    _obtain("cifar10", CIFAR10, root, {"train": True})
    del variant


def obtain_cifar100(root: Path, variant: str) -> None:
    """Download CIFAR-100 unless it is there.

    Raises:
        InputError: it cannot be downloaded.
    """
    from torchvision.datasets import CIFAR100

    _obtain("cifar100", CIFAR100, root, {"train": True})
    del variant


def obtain_dtd(root: Path, variant: str) -> None:
    """Download Describable Textures unless they are there.

    Raises:
        InputError: they cannot be downloaded.
    """
    from torchvision.datasets import DTD

    _obtain("dtd", DTD, root, {"split": "train"})
    del variant


def _obtain(name: str, kind: Any, root: Path, part: dict[str, Any]) -> None:
    with download_errors(name, root):
        kind(str(root), download=True, **part)


def cifar_with_test_images(
    name: str, pixels: Pixels, labels: list[int], request: LoadRequest
) -> ImageData:
    """Return CIFAR-10's training images with other test images of the same classes."""
    from torchvision.datasets import CIFAR10

    with download_errors("cifar10", request.root):
        train = CIFAR10(str(request.root), train=True, download=True)
    return _cifar_data(name, train, (pixels, labels), request)


def _load_cifar(name: str, kind: Any, request: LoadRequest) -> ImageData:
    with download_errors(name, request.root):
        train, test = (kind(str(request.root), train=t, download=True) for t in (True, False))
    return _cifar_data(name, train, (test.data, test.targets), request)


def _cifar_data(
    name: str, train: Any, test: tuple[Pixels, list[int]], request: LoadRequest
) -> ImageData:
    return ImageData.take_selection(
        train=request.whole_images(train.data, train.targets, mirror=True),
        test=request.whole_images(*test, mirror=False),
        class_names=train.classes,
        source=DataSource(
            name=name,
            train_images=len(train),
            held_out_images=len(test[1]),
            fingerprint=hash_pixels((train.data, train.targets), test),
        ),
        seed=request.seed,
    )


def load_dtd(request: LoadRequest) -> ImageData:
    """Load Describable Textures: train, val and test have 1,880 images each, in 47 classes."""
    from torchvision.datasets import DTD

    with download_errors("dtd", request.root):
        # With the identity as its loader, DTD's items are (file, label) and nothing is decoded.
        parts = [
            DTD(str(request.root), split=split, download=True, loader=Path)
            for split in ("train", "val", "test")
        ]
    train, val, test = ([part[i] for i in range(len(part))] for part in parts)
    data = data_from_files(
        "dtd",
        request.input_format,
        class_names=parts[0].classes,
        train=train,
        selection=val,
        test=test,
        root=request.root,
        seed=request.seed,
    )
    # The paper trains on train and val together.
    return replace(data, selection_positions=tuple(range(len(train), len(train) + len(val))))


@contextlib.contextmanager
def download_errors(name: str, root: Path) -> Iterator[None]:
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
