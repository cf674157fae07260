"""Parts of a folder of images: the folders for training, selection and test.

A folder is a part if its name is one of ``PART_NAMES``, in any case and with words such as ``set``
or a number (``Training_Set``, ``val2017``), and it has folders in it. A folder ``train`` with
images and without folders is the class "train". If a folder has a training part and one held-out
part, the latter is the test part under every name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from planner.training.images.image_files import image_suffixes
from planner.training.images.listing import is_hidden
from profiler.errors import InputError

PART_NAMES = {
    "train": ("train", "training"),
    "selection": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval"),
}
"""Usual folder names, by part."""

_BESIDE_NAMES = frozenset(("set", "data", "dataset", "image", "images", "img", "imgs", "split"))
"""Words beside the name of a part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderParts:
    """Folders of the parts of a data set.

    Attributes:
        train: folder of the training images.
        selection: folder of the selection images; None if they are to be taken out of ``train``.
        test: folder of the test images; None if they are to be taken out of ``train``.
    """

    train: Path
    selection: Path | None = None
    test: Path | None = None

    def held_out(self) -> list[Path]:
        """Return the folders that are not trained on."""
        return [folder for folder in (self.selection, self.test) if folder is not None]

    def all(self) -> list[Path]:
        """Return every folder."""
        return [self.train, *self.held_out()]


def find_parts(root: Path) -> FolderParts:
    """Return the parts of a folder; the folder itself is the training part if it has none.

    Raises:
        InputError: two folders have names of the same part, a held-out part stands without a
            training part, parts stand beside class folders, or folders look like parts and have
            other names.
        OSError: a folder cannot be listed.
    """
    folders = _folders_in(root)
    named = {part: [f for f in folders if _part_of(f) == part] for part in PART_NAMES}
    if not any(_folders_in(folder) for same in named.values() for folder in same):
        _refuse_loose_parts(root, folders, named)
        _refuse_likely_parts(root, folders)
        return FolderParts(train=root)
    for part, same in named.items():
        if len(same) > 1:
            raise InputError(
                f"{same[0].name} and {same[1].name} in {root} both name the {part} part; "
                "remove or rename one"
            )
    if not named["train"]:
        raise InputError(
            f"no training part in {root}, which has {', '.join(f.name for f in folders[:8])}; "
            "name one folder train, or rename those that are classes"
        )
    (train,) = named["train"]
    held_out = [*named["selection"], *named["test"]]
    classes = [f for f in folders if _part_of(f) is None and _has_images(f)]
    if classes and not held_out:
        raise InputError(
            f"{train.name} in {root} may be a part or a class, beside {classes[0].name}; "
            "move one of them"
        )
    if len(held_out) < 2:
        _refuse_unknown_part(root, train, [f for f in folders if f not in (train, *held_out)])
    match held_out:
        case [selection, test]:
            return FolderParts(train=train, selection=selection, test=test)
        case [test]:
            return FolderParts(train=train, test=test)
    return FolderParts(train=train)


def _part_of(folder: Path) -> str | None:
    """Return the part that a folder's name means; None if it is no usual name of a part."""
    words = [word for word in _words_of_name(folder) if word not in _BESIDE_NAMES]
    if len(words) != 1:
        return None
    return next((part for part, names in PART_NAMES.items() if words[0] in names), None)


def _words_of_name(folder: Path) -> list[str]:
    """Return the words of a name: ``["train", "set"]`` of ``Train_Set-2`` and of ``trainset``."""
    words = re.findall(r"[^\W\d_]+", folder.name.casefold())
    ends = [word.removesuffix("set") for word in words]
    parts = {name for names in PART_NAMES.values() for name in names}
    return [end if end in parts else word for word, end in zip(words, ends, strict=True)]


def _folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder, in order, without hidden ones."""
    entries = sorted(folder.iterdir())
    return [entry for entry in entries if entry.is_dir() and not is_hidden(entry.name)]


def _has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in image_suffixes() for path in folder.iterdir())


def _refuse_loose_parts(root: Path, folders: list[Path], named: dict[str, list[Path]]) -> None:
    """Refuse a training folder beside a held-out folder, both without class folders in them."""
    only_parts = all(_part_of(folder) is not None for folder in folders)
    if only_parts and named["train"] and (named["selection"] or named["test"]):
        raise InputError(
            f"{root} has the parts {', '.join(f.name for f in folders)}, but no class folders in "
            "them; put the images of each class in a folder of its own"
        )


def _refuse_unknown_part(root: Path, train: Path, others: list[Path]) -> None:
    """Refuse a folder beside the parts that has the class folders of the training part."""
    classes = {folder.name for folder in _folders_in(train)}
    for other in others:
        if any(f.name in classes and _has_images(f) for f in _folders_in(other)):
            raise InputError(
                f"{other.name} in {root} has class folders that {train.name} has; "
                "name it val or test, or move it"
            )


def _refuse_likely_parts(root: Path, folders: list[Path]) -> None:
    """Refuse folders of folders with a training and a held-out part among other words."""
    nested = [folder for folder in folders if _folders_in(folder) and not _has_images(folder)]
    found: dict[str, Path] = {}
    for folder in nested:
        words = set(_words_of_name(folder))
        for part in (part for part, names in PART_NAMES.items() if words.intersection(names)):
            found.setdefault(part, folder)
    if "train" in found and len(set(found.values())) > 1:
        train = found.pop("train")
        other = next(folder for folder in found.values() if folder != train)
        raise InputError(
            f"{train.name} and {other.name} in {root} look like parts; "
            "name them train and test, or rename those that are classes"
        )
