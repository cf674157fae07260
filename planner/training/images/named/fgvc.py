"""FGVC: five data sets of fine-grained classes, in the files of VPT and V-PEFT Bench.

    DIR/SET/train.json, val.json, test.json    objects {image file: class id}

These splits were made for arXiv 2203.12119 and are those of the benchmark of arXiv 2402.02242.
Images are in the folder that the original archive makes: ``images/`` for CUB and NABirds,
``Images/`` for Stanford Dogs, the set's own folder for the others. Classes are the ids in
``train.json`` in order. Where each class has a folder of its own, the folder's name is the class's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import msgspec

from planner.training.images.image_files import error_text
from planner.training.images.image_folder import data_from_files
from planner.training.images.image_set import ImageData
from planner.training.images.named.load_request import (
    LoadRequest,
    SetSize,
    check_files,
    safe_image_path,
)
from profiler.errors import InputError, UnknownNameError

FGVC_FOLDER = "fgvc"
"""Folder in the data folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FineGrainedSet:
    """A data set.

    Attributes:
        folder: its folder in the benchmark.
        images: its subfolder with the images; empty for the folder itself.
        size: number of classes and training images.
    """

    folder: str
    images: str
    size: SetSize


FGVC_SETS = {
    "cub": FineGrainedSet(
        folder="CUB_200_2011", images="images", size=SetSize(num_classes=200, train_images=5394)
    ),
    "nabirds": FineGrainedSet(
        folder="nabirds", images="images", size=SetSize(num_classes=555, train_images=21536)
    ),
    "flowers": FineGrainedSet(
        folder="OxfordFlower", images="", size=SetSize(num_classes=102, train_images=1020)
    ),
    "dogs": FineGrainedSet(
        folder="StanfordDogs", images="Images", size=SetSize(num_classes=120, train_images=10800)
    ),
    "cars": FineGrainedSet(
        folder="StanfordCars", images="", size=SetSize(num_classes=196, train_images=7329)
    ),
}
"""The sets by name. Numbers of training images are those of arXiv 2203.12119, table 7."""

_CLASS_NUMBER = re.compile(r"^(\d+\.|n\d+-)")
"""Number in front of a class's name in the folders of CUB and Stanford Dogs."""

ClassId = int | str

_FGVC_REMEDY = "copy FGVC there (docs/data.md)"


def load_fgvc(request: LoadRequest) -> ImageData:
    """Load a set of FGVC.

    Raises:
        UnknownNameError: there is no such set.
        InputError: a file is missing or damaged, or names a file outside of its folder.
    """
    name, root = _set_folder(request.root, request.variant)
    chosen = FGVC_SETS[name]
    train = _read_split(root / "train.json")
    ids = sorted(set(train.values()), key=lambda each: (isinstance(each, str), each))
    if len(ids) != chosen.size.num_classes:
        raise InputError(
            f"{root / 'train.json'} has {len(ids)} classes, {name} has {chosen.size.num_classes}; "
            "copy it again"
        )
    splits = {
        "train": train,
        "test": _read_split(root / "test.json"),
        **({"val": _read_split(root / "val.json")} if (root / "val.json").exists() else {}),
    }
    parts = {
        part: _labelled_images(split, ids, root / chosen.images, root / f"{part}.json")
        for part, split in splits.items()
    }
    return data_from_files(
        f"fgvc:{request.variant}",
        request.input_format,
        class_names=_folder_names(train, ids),
        train=parts["train"],
        selection=parts.get("val"),
        test=parts["test"],
        root=root,
        seed=request.seed,
    )


def obtain_fgvc(root: Path, variant: str) -> None:
    """Check that the splits of a set are there.

    Raises:
        InputError: a split is missing.
    """
    _, folder = _set_folder(root, variant)
    check_files((folder / f"{part}.json" for part in ("train", "test")), remedy=_FGVC_REMEDY)


def _set_folder(root: Path, variant: str) -> tuple[str, Path]:
    """Return the set's name and its folder."""
    name, given = parse_fgvc(variant)
    base = Path(given).expanduser() if given else root / FGVC_FOLDER
    return name, base / FGVC_SETS[name].folder


def parse_fgvc(variant: str) -> tuple[str, str]:
    """Return the set and the folder of ``SET`` or ``SET:DIR``; the folder may be empty.

    Raises:
        UnknownNameError: there is no such set.
    """
    name, _, folder = variant.partition(":")
    if name not in FGVC_SETS:
        raise UnknownNameError(
            kind="set of FGVC",
            name=name,
            known=FGVC_SETS,
            hint=f"write fgvc:SET with one of {', '.join(FGVC_SETS)}",
        )
    return name, folder


def _read_split(path: Path) -> dict[str, ClassId]:
    try:
        found = msgspec.json.decode(path.read_bytes(), type=dict[str, ClassId])
    except (OSError, msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise InputError(
            f"cannot read {path} as an object of images and class ids: {error_text(error)}; "
            f"{_FGVC_REMEDY}"
        ) from error
    if not found:
        raise InputError(f"{path} is empty; copy it again")
    return found


def _labelled_images(
    split: Mapping[str, ClassId], ids: Sequence[ClassId], folder: Path, file: Path
) -> list[tuple[Path, int]]:
    labels = {each: label for label, each in enumerate(ids)}
    found = []
    for name, each in split.items():
        if each not in labels:
            raise InputError(f"{file} has the class {each!r}, which train.json has not")
        found.append((folder / safe_image_path(name, file), labels[each]))
    return found


def _folder_names(train: Mapping[str, ClassId], ids: Sequence[ClassId]) -> list[str]:
    """Return the names of the classes' folders if each class has one of its own, else numbers."""
    folders: dict[ClassId, set[str]] = {each: set() for each in ids}
    for name, each in train.items():
        folders[each].add(PurePosixPath(name).parent.name)
    single = [next(iter(found)) for found in folders.values() if len(found) == 1]
    names = [_CLASS_NUMBER.sub("", name) for name in single]
    is_named = len(set(names)) == len(ids) and not any(n.isdigit() or not n for n in names)
    return names if is_named else [f"class {label}" for label in range(len(ids))]
