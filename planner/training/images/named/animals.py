"""Silhouettes of animals from the package animal-mnist (MIT), which needs no network once there.

Only the package's two data files are read. Its modules are not imported, because they import
TensorFlow, and its pickles are read by ``named.array_pickle``.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from planner.training.images.image_set import DataSource, ImageData
from planner.training.images.named.array_pickle import read_array
from planner.training.images.named.load_request import LoadRequest, check_arrays, hash_pixels
from planner.training.images.split import split_off_test
from profiler.errors import InputError

ANIMALS = (
    "bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra",
)  # fmt: skip
"""Classes in the order of the package's description."""

_PACKAGE = "animal_mnist"
_FILES = ("animal_data_version_3.gz", "animal_label_version_3.gz")


def load_animals(request: LoadRequest) -> ImageData:
    """Load 10,000 silhouettes of 28x28 pixels in 10 classes.

    Raises:
        InputError: the package is not installed, or its files are damaged.
    """
    folder = _data_folder()
    pixels, labels = (read_array(folder / name) for name in _FILES)
    check_arrays(pixels, labels, shape=(28, 28), classes=len(ANIMALS), place=folder)
    classes = labels.tolist()
    train, test = split_off_test(classes, request.seed, ANIMALS)
    return ImageData.take_selection(
        train=request.whole_images(pixels, classes, mirror=True).select(train),
        test=request.whole_images(pixels, classes, mirror=False).select(test),
        class_names=ANIMALS,
        source=DataSource(
            name="animals",
            train_images=len(train),
            held_out_images=len(test),
            fingerprint=hash_pixels((pixels, classes)),
        ),
        seed=request.seed,
    )


def obtain_animals(root: Path, variant: str) -> None:
    """Check that the package is installed.

    Raises:
        InputError: it is not.
    """
    del root, variant
    _data_folder()


def _data_folder() -> Path:
    """Return the folder of the package's data files, without importing the package."""
    spec = find_spec(_PACKAGE)
    places = [] if spec is None else spec.submodule_search_locations or []
    for place in places:
        folder = Path(place) / "data" / "Animal_MNIST"
        if all((folder / name).is_file() for name in _FILES):
            return folder
    raise InputError(
        "data 'animals' is in the package animal-mnist, which is not installed; run "
        "pip install --no-deps 'animal-mnist>=0.4'"
    )
