"""Labelled images from a folder with one sub-folder for each class."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from planner.training.crops import centre, random_crop
from planner.training.image_set import (
    NAMES,
    DataSource,
    ImageData,
    ImageShape,
    one_line,
    readable_image,
    stratified_split,
)
from profiler.errors import InputError

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)

HELD_OUT_FOLDERS = ("val", "valid", "test")


# ---- folders -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listing:
    """The images of a folder by class name, and how many other files lay there."""

    files: dict[str, list[Path]]
    skipped: int

    def items(self, classes: Sequence[str]) -> list[tuple[Path, int]]:
        return [(f, i) for i, name in enumerate(classes) for f in self.files.get(name, [])]


def read_folder(spec: str, shape: ImageShape, seed: int) -> ImageData:
    root = Path(spec).expanduser()
    if not root.is_dir():
        kind = "is a file" if root.exists() else "does not exist"
        raise InputError(
            f"data {spec!r} {kind}; give a folder of class folders or one of {', '.join(NAMES)}"
        )
    with _listable(root):
        train_root, held_out_root = _parts(root)
        train = _scan(train_root)
        held_out = _scan(held_out_root) if held_out_root is not None else None
    classes = _class_names(train, train_root)
    items = train.items(classes)
    if held_out is None:
        first, second = stratified_split([label for _, label in items], seed, classes)
        parts = [items[i] for i in first], [items[i] for i in second]
    else:
        strange = sorted(set(held_out.files) - set(classes))
        if strange:
            raise InputError(f"{held_out_root} has class {strange[0]!r}, {train_root} has not")
        parts = items, held_out.items(classes)
        if not parts[1]:
            raise InputError(f"no images in {held_out_root}; remove it to split {train_root} 80/20")
    return from_files(
        spec,
        shape,
        class_names=classes,
        train=parts[0],
        held_out=parts[1],
        root=root,
        skipped=train.skipped + (held_out.skipped if held_out is not None else 0),
    )


def _parts(root: Path) -> tuple[Path, Path | None]:
    """Return where training and held-out images lie.

    A folder ``train`` without folders in it is a class: trains are pictures too.
    """
    train = root / "train"
    if not (train.is_dir() and any(entry.is_dir() for entry in train.iterdir())):
        return root, None
    held_out = [root / name for name in HELD_OUT_FOLDERS if (root / name).is_dir()]
    return train, held_out[0] if held_out else None


def _scan(folder: Path) -> _Listing:
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    files: dict[str, list[Path]] = {}
    skipped = sum(not entry.is_dir() for entry in entries)
    for entry in filter(Path.is_dir, entries):
        found = [path for path in sorted(entry.rglob("*")) if path.is_file()]
        files[entry.name] = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]
        skipped += len(found) - len(files[entry.name])
    return _Listing(files=files, skipped=skipped)


def _class_names(listing: _Listing, folder: Path) -> list[str]:
    classes = list(listing.files)
    if not classes:
        raise InputError(f"no class folders in {folder}; put the images of each class in a folder")
    if len(classes) == 1:
        raise InputError(f"only one class ({classes[0]!r}) in {folder}; a classifier needs two")
    for name, files in listing.files.items():
        if not files:
            raise InputError(f"class folder {folder / name} has no images; fill or remove it")
    return classes


def from_files(
    name: str,
    shape: ImageShape,
    *,
    class_names: Sequence[str],
    train: Sequence[tuple[Path, int]],
    held_out: Sequence[tuple[Path, int]],
    root: Path,
    skipped: int = 0,
) -> ImageData:
    everything = [*train, *held_out]
    for path, _ in everything:
        _check_header(path)
    return ImageData(
        train=shape.of(*_columns(train), frame=random_crop, mirror=True),
        held_out=shape.of(*_columns(held_out), frame=centre, mirror=False),
        class_names=tuple(class_names),
        source=DataSource(
            name=name,
            train_images=len(train),
            held_out_images=len(held_out),
            fingerprint=_hash_listing((path for path, _ in everything), root),
            skipped_files=skipped,
        ),
    )


def _columns(items: Sequence[tuple[Path, int]]) -> tuple[list[Path], list[int]]:
    return [path for path, _ in items], [label for _, label in items]


def _check_header(path: Path) -> None:
    """Open without decoding; what is broken further in is found when the image is used."""
    from PIL import Image

    with readable_image(path), Image.open(path):
        pass


@contextlib.contextmanager
def _listable(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot list {root}: {one_line(error)}") from error


def _hash_listing(paths: Iterable[Path], root: Path) -> str:
    lines = (f"{path.relative_to(root).as_posix()}\t{path.stat().st_size}\n" for path in paths)
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
