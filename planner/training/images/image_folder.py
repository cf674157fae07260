"""Images from a folder with one sub-folder for each class.

The folder has class folders, or parts with class folders in them
(``planner.training.images.folder_parts``). Without a held-out part, 20 % of each class's images are
the test images. Without a selection part, 10 % of each class's training images are taken out for
it. Training images get a random crop and are mirrored half of the time; the others get the centre
crop.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from planner.training.images.copies import count_copies
from planner.training.images.crops import CropRule, centre_crop, random_crop
from planner.training.images.folder_parts import FolderParts, find_parts
from planner.training.images.image_files import check_images, error_text
from planner.training.images.image_set import (
    DataSource,
    ImageData,
    ImageSet,
    InputFormat,
)
from planner.training.images.listing import (
    HIDDEN,
    OUTSIDE_CLASSES,
    FolderListing,
    count_files,
    is_hidden,
    list_classes,
)
from planner.training.images.split import split_off_test
from profiler.errors import InputError

LabelledFiles = Sequence[tuple[Path, int]]
"""Files with their labels."""


def read_folder(spec: str, input_format: InputFormat, seed: int) -> ImageData:
    """Read a folder of class folders.

    Args:
        spec: the folder as the user wrote it; ``~`` is expanded.
        input_format: size and normalisation of the images.
        seed: seed of the split, where the folder lacks a part.

    Raises:
        InputError: no clear parts, fewer than two classes, a class without images,
            classes that differ between the parts, or a file that is not an image.
    """
    root = Path(spec).expanduser()
    with _listing_errors(root):
        folders = find_parts(root)
        beside = _count_beside(root, folders)
        listings = {folder: list_classes(folder) for folder in folders.all()}
    classes = _class_names(listings[folders.train], folders.train)
    for folder in folders.held_out():
        _check_classes(listings[folder], classes, folder=folder, train=folders.train)
    train = listings[folders.train].labelled(classes)
    selection, test = (
        None if folder is None else listings[folder].labelled(classes)
        for folder in (folders.selection, folders.test)
    )
    if test is None:
        first, second = split_off_test([label for _, label in train], seed, classes)
        train, test = [train[i] for i in first], [train[i] for i in second]
    return data_from_files(
        spec,
        input_format,
        class_names=classes,
        train=train,
        selection=selection,
        test=test,
        root=root,
        seed=seed,
        skipped=sum((listing.skipped for listing in listings.values()), beside),
    )


def data_from_files(
    name: str,
    input_format: InputFormat,
    *,
    class_names: Sequence[str],
    train: LabelledFiles,
    test: LabelledFiles,
    selection: LabelledFiles | None = None,
    root: Path,
    seed: int,
    skipped: Mapping[str, int] | None = None,
) -> ImageData:
    """Return a data set of image files, after a check of each file.

    Args:
        name: name of the data set.
        input_format: size and normalisation of the images.
        class_names: name of each class, by label.
        train: training files with their labels.
        test: test files with their labels.
        selection: selection files with their labels; None to take them out of ``train``.
        root: folder that the file names of the fingerprint and of messages are relative to.
        seed: seed of the selection part, where it is taken out of ``train``.
        skipped: number of files that are left out, by reason.

    Raises:
        InputError: files cannot be opened as images, or are incomplete.
    """
    files = [path for path, _ in (*train, *(selection or ()), *test)]
    check_images(files, root)
    trained = _image_set(train, input_format, crop=random_crop, mirror=True)
    tested = _image_set(test, input_format, crop=centre_crop, mirror=False)
    source = DataSource(
        name=name,
        train_images=len(train),
        held_out_images=len(test),
        fingerprint=_hash_names_and_sizes(files, root),
        skipped_files=sum((skipped or {}).values()),
        skip_reasons=dict(skipped or {}),
        selection_images=None if selection is None else len(selection),
    )
    if selection is None:
        return ImageData.take_selection(
            train=trained, test=tested, class_names=class_names, source=source, seed=seed
        )
    selected = _image_set(selection, input_format, crop=centre_crop, mirror=False)
    copies = count_copies(trained.images, (selected.images, tested.images))
    return ImageData(
        train=trained,
        selection=selected,
        test=tested,
        class_names=tuple(class_names),
        source=replace(source, copied_images=copies),
    )


def _count_beside(root: Path, folders: FolderParts) -> Counter[str]:
    """Count the files beside the parts; none where the class folders are in ``root`` itself."""
    beside: Counter[str] = Counter()
    if folders.train != root:
        for entry in root.iterdir():
            if entry not in folders.all():
                beside[HIDDEN if is_hidden(entry.name) else OUTSIDE_CLASSES] += count_files(entry)
    return beside


def _image_set(
    items: LabelledFiles, input_format: InputFormat, *, crop: CropRule, mirror: bool
) -> ImageSet:
    return ImageSet(
        images=[path for path, _ in items],
        labels=[label for _, label in items],
        input_format=input_format,
        crop=crop,
        mirror=mirror,
    )


def _class_names(listing: FolderListing, folder: Path) -> list[str]:
    """Return the names of the classes; refuse fewer than two."""
    classes = list(listing.files)
    if not classes:
        raise InputError(f"no class folders in {folder}; put the images of each class in a folder")
    if len(classes) == 1:
        raise InputError(f"only one class ({classes[0]!r}) in {folder}; a classifier needs two")
    return classes


def _check_classes(
    listing: FolderListing, classes: Sequence[str], *, folder: Path, train: Path
) -> None:
    """Check that a held-out folder has images of the trained classes, and of no other.

    A missing class is refused: the accuracy over the rest is no accuracy of the classifier, and the
    usual reason is a folder with another spelling or a copy that stopped half-way.
    """
    if not listing.files:
        raise InputError(f"no images in class folders of {folder}; remove it to split {train}")
    untrained = sorted(set(listing.files) - set(classes))
    if untrained:
        raise InputError(
            f"{folder} has class {untrained[0]!r}, which {train} lacks; "
            "add its training images or remove it"
        )
    missing = [name for name in classes if name not in listing.files]
    if missing:
        raise InputError(
            f"{folder} has no images of {len(missing)} of {len(classes)} classes "
            f"({missing[0]!r}); add them, or remove the folder to split {train}"
        )


@contextlib.contextmanager
def _listing_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot list {root}: {error_text(error)}; check its permissions"
        ) from error


def _hash_names_and_sizes(paths: Iterable[Path], root: Path) -> str:
    lines = [
        # A name that is no valid text is hashed by its bytes.
        os.fsencode(f"{path.relative_to(root).as_posix()}\t{path.stat().st_size}\n")
        for path in paths
    ]
    return hashlib.sha256(b"".join(sorted(lines))).hexdigest()
