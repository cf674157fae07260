"""CIFAR-10-C: the test images of CIFAR-10 under 19 corruptions of 5 severities.

Hendrycks and Dietterich, arXiv 1903.12261; the archive is doi.org/10.5281/zenodo.2535967. Each
``CORRUPTION.npy`` has the test images at severity 1, then at severity 2, and so on; ``labels.npy``
has the label of each. Training images are those of CIFAR-10.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.training.images.image_files import error_text
from planner.training.images.image_set import ImageData
from planner.training.images.named.load_request import LoadRequest, check_arrays, check_files
from planner.training.images.named.torchvision_sets import (
    cifar_with_test_images,
    obtain_cifar10,
)
from profiler.errors import InputError, UnknownNameError, UsageError

if TYPE_CHECKING:
    import numpy as np

CORRUPTIONS = (
    "brightness", "contrast", "defocus_blur", "elastic_transform", "fog", "frost", "gaussian_blur",
    "gaussian_noise", "glass_blur", "impulse_noise", "jpeg_compression", "motion_blur", "pixelate",
    "saturate", "shot_noise", "snow", "spatter", "speckle_noise", "zoom_blur",
)  # fmt: skip

SEVERITIES = 5

FOLDER_NAME = "CIFAR-10-C"
"""Folder that the archive makes."""


def load_cifar10_c(request: LoadRequest) -> ImageData:
    """Load CIFAR-10 with the test images of a corruption and severity.

    Raises:
        UsageError: the variant is not ``CORRUPTION:SEVERITY``.
        InputError: a file is missing or damaged, or CIFAR-10 cannot be downloaded.
    """
    corruption, severity = parse_cifar10_c(request.variant)
    folder = request.root / FOLDER_NAME
    every, labels = (_read_npy(folder / f"{name}.npy") for name in (corruption, "labels"))
    check_arrays(every, labels, shape=(32, 32, 3), classes=10, place=folder / f"{corruption}.npy")
    count, rest = divmod(len(every), SEVERITIES)
    if rest:
        raise InputError(
            f"{folder / f'{corruption}.npy'} must have as many images at each of {SEVERITIES} "
            f"severities, got {len(every)} in all"
        )
    chosen = slice((severity - 1) * count, severity * count)
    pixels = every[chosen].copy()  # the file is mapped into memory, and is not needed any more
    name = f"cifar10-c:{corruption}:{severity}"
    return cifar_with_test_images(name, pixels, labels[chosen].tolist(), request)


def obtain_cifar10_c(root: Path, variant: str) -> None:
    """Check that the files of a corruption are there, and download CIFAR-10 if it is not.

    Raises:
        InputError: a file is missing, or CIFAR-10 cannot be downloaded.
    """
    corruption, _ = parse_cifar10_c(variant)
    folder = root / FOLDER_NAME
    check_files((folder / f"{name}.npy" for name in (corruption, "labels")), remedy=_remedy(folder))
    obtain_cifar10(root, "")


def _remedy(folder: Path) -> str:
    archive = "CIFAR-10-C.tar from doi.org/10.5281/zenodo.2535967"
    return f"get {archive} and extract it in {folder.parent}"


def parse_cifar10_c(variant: str) -> tuple[str, int]:
    """Return the corruption and its severity, from 1 to 5.

    Raises:
        UsageError: the variant is not ``CORRUPTION:SEVERITY``.
    """
    corruption, _, severity = variant.partition(":")
    if severity not in tuple(str(number + 1) for number in range(SEVERITIES)):
        raise UsageError(
            f"expected cifar10-c:CORRUPTION:SEVERITY with a severity from 1 to {SEVERITIES}, "
            f"such as cifar10-c:gaussian_noise:3, got {f'cifar10-c:{variant}'!r}"
        )
    if corruption not in CORRUPTIONS:
        raise UnknownNameError(
            kind="corruption",
            name=corruption,
            known=CORRUPTIONS,
            hint=f"choose from {', '.join(CORRUPTIONS)}",
        )
    return corruption, int(severity)


def _read_npy(path: Path) -> np.ndarray[Any, Any]:
    from numpy.lib.format import open_memmap

    if not path.is_file():
        raise InputError(f"{path} does not exist; {_remedy(path.parent)}")
    try:
        # Unlike numpy.load, this reads no archive, and no pickle in any case.
        array: np.ndarray[Any, Any] = open_memmap(path, mode="r")
    except Exception as error:  # damaged headers raise errors of many classes
        raise InputError(f"cannot read {path}: {error_text(error)}; extract it again") from error
    if not array.ndim:
        raise InputError(f"cannot read {path}: it holds one number; extract it again")
    return array
