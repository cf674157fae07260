"""Images from a folder with one sub-folder for each class.

The folder has class folders, or ``train`` and one of ``val``, ``valid`` and ``test`` with class
folders in them. Without a held-out part the images are split 80/20 within each class. Training
images get a random crop and are mirrored half of the time; held-out images get the centre crop.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from planner.training.images.crops import centre_crop, random_crop
from planner.training.images.image_files import IMAGE_SUFFIXES, check_header, error_text
from planner.training.images.image_set import (
    DataSource,
    ImageData,
    ImageSet,
    InputFormat,
    stratified_split,
)
from profiler.errors import InputError

HELD_OUT_FOLDERS = ("val", "valid", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class _FolderListing:
    """The files of a folder of class folders.

    Attributes:
        files: image files by class name, in order.
        skipped: number of other files.
    """

    files: dict[str, list[Path]]
    skipped: int

    def labelled(self, classes: Sequence[str]) -> list[tuple[Path, int]]:
        """Return (file, label); the label is the class's index in ``classes``."""
        return [(f, i) for i, name in enumerate(classes) for f in self.files.get(name, [])]


def read_folder(spec: str, input_format: InputFormat, seed: int) -> ImageData:
    """Read a folder of class folders.

    Args:
        spec: the folder as the user wrote it; ``~`` is expanded.
        input_format: size and normalisation of the images.
        seed: seed of the split, where the folder has no held-out part.

    Raises:
        InputError: no such folder, fewer than two classes, a class without images, a held-out class
            that is not trained, or a file that is not an image.
    """
    root = Path(spec).expanduser()
    if not root.is_dir():
        state = "is a file" if root.exists() else "does not exist"
        raise InputError(f"data {spec!r} {state}; give a folder or digits, cifar100, dtd")
    with _listing_errors(root):
        train_root, held_out_root = _train_and_held_out(root)
        train = _list_classes(train_root)
        held_out = _list_classes(held_out_root) if held_out_root is not None else None
    classes = _class_names(train, train_root)
    items = train.labelled(classes)
    if held_out is None:
        first, second = stratified_split([label for _, label in items], seed, classes)
        parts = [items[i] for i in first], [items[i] for i in second]
    else:
        untrained = sorted(set(held_out.files) - set(classes))
        if untrained:
            raise InputError(
                f"{held_out_root} has class {untrained[0]!r}, which {train_root} lacks; "
                "add its training images or remove it"
            )
        parts = items, held_out.labelled(classes)
        if not parts[1]:
            raise InputError(f"no images in {held_out_root}; remove it to split {train_root} 80/20")
    return data_from_files(
        spec,
        input_format,
        class_names=classes,
        train=parts[0],
        held_out=parts[1],
        root=root,
        skipped=train.skipped + (held_out.skipped if held_out is not None else 0),
    )


def data_from_files(
    name: str,
    input_format: InputFormat,
    *,
    class_names: Sequence[str],
    train: Sequence[tuple[Path, int]],
    held_out: Sequence[tuple[Path, int]],
    root: Path,
    skipped: int = 0,
) -> ImageData:
    """Return a data set of image files, after opening each file once.

    Args:
        name: name of the data set.
        input_format: size and normalisation of the images.
        class_names: name of each class, by label.
        train: training files with their labels.
        held_out: held-out files with their labels.
        root: folder that the fingerprint's file names are relative to.
        skipped: number of files that are not images.

    Raises:
        InputError: a file cannot be opened as an image.
    """
    files = [path for path, _ in (*train, *held_out)]
    for path in files:
        check_header(path)
    return ImageData(
        train=ImageSet(
            images=[path for path, _ in train],
            labels=[label for _, label in train],
            input_format=input_format,
            crop=random_crop,
            mirror=True,
        ),
        held_out=ImageSet(
            images=[path for path, _ in held_out],
            labels=[label for _, label in held_out],
            input_format=input_format,
            crop=centre_crop,
            mirror=False,
        ),
        class_names=tuple(class_names),
        source=DataSource(
            name=name,
            train_images=len(train),
            held_out_images=len(held_out),
            fingerprint=_hash_names_and_sizes(files, root),
            skipped_files=skipped,
        ),
    )


def _train_and_held_out(root: Path) -> tuple[Path, Path | None]:
    """Return the folders of the training images and of the held-out images.

    A folder ``train`` without folders in it is the class "train", not the training part.
    """
    train = root / "train"
    if not (train.is_dir() and any(entry.is_dir() for entry in train.iterdir())):
        return root, None
    held_out = [root / name for name in HELD_OUT_FOLDERS if (root / name).is_dir()]
    return train, held_out[0] if held_out else None


def _list_classes(folder: Path) -> _FolderListing:
    """List the class folders in a folder; names with a leading dot are ignored."""
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    files: dict[str, list[Path]] = {}
    skipped = sum(not entry.is_dir() for entry in entries)
    for entry in filter(Path.is_dir, entries):
        found = [path for path in sorted(entry.rglob("*")) if path.is_file()]
        files[entry.name] = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]
        skipped += len(found) - len(files[entry.name])
    return _FolderListing(files=files, skipped=skipped)


def _class_names(listing: _FolderListing, folder: Path) -> list[str]:
    """Return the names of the classes; refuse fewer than two, and a class without images."""
    classes = list(listing.files)
    if not classes:
        raise InputError(f"no class folders in {folder}; put the images of each class in a folder")
    if len(classes) == 1:
        raise InputError(f"only one class ({classes[0]!r}) in {folder}; a classifier needs two")
    for name, files in listing.files.items():
        if not files:
            raise InputError(f"class folder {folder / name} has no images; fill or remove it")
    return classes


@contextlib.contextmanager
def _listing_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot list {root}: {error_text(error)}; check its permissions"
        ) from error


def _hash_names_and_sizes(paths: Iterable[Path], root: Path) -> str:
    lines = (f"{path.relative_to(root).as_posix()}\t{path.stat().st_size}\n" for path in paths)
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
