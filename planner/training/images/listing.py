"""Lists the image files of class folders, and counts the files that are left out by reason.

A path with a hidden or system part is left out. Folders in class folders are searched; links to
folders in there are not followed, so a listing ends and stays within its class folders.

The name of a class is that of its folder in the normal form C of Unicode: macOS writes ``é`` as two
characters, other systems as one.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from planner.training.images.image_files import is_image_file
from profiler.errors import InputError
from profiler.json_records import unsafe_text

SYSTEM_NAMES = frozenset(
    (
        "$recycle.bin", "#recycle", "@eadir", "@recycle", "__macosx", "__pycache__", "desktop.ini",
        "ehthumbs.db", "lost+found", "system volume information", "thumbs.db",
    )
)  # fmt: skip
"""Names, in lower case, of files and folders that systems and NAS servers put beside images."""

LISTED_REASONS = 6
"""Most reasons that a sentence lists."""

HIDDEN = "hidden or system"
OUTSIDE_CLASSES = "outside the class folders"
LINKED_FOLDER = "link to a folder"
LINKED_TWICE = "second link to a file"
NOT_A_FILE = "not a regular file"
NO_SUFFIX = "without a suffix"


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderListing:
    """The files of a folder of class folders.

    Attributes:
        files: image files by class name, in order.
        skipped: number of other files by reason.
    """

    files: dict[str, list[Path]]
    skipped: Counter[str]

    def labelled(self, classes: Sequence[str]) -> list[tuple[Path, int]]:
        """Return (file, label); the label is the class's index in ``classes``."""
        return [(f, i) for i, name in enumerate(classes) for f in self.files.get(name, [])]


def is_hidden(name: str) -> bool:
    """Return whether the name of a file or folder is hidden, or that of a system file."""
    return name.startswith(".") or name.casefold() in SYSTEM_NAMES


def list_classes(folder: Path) -> FolderListing:
    """List the class folders in a folder.

    Raises:
        InputError: a class folder has no images, contains the folder itself, is the same as another
            class folder, by links, or has a name that is no text.
        OSError: a folder cannot be read.
    """
    listing = FolderListing(files={}, skipped=Counter())
    places: dict[Path, Path] = {folder.resolve(): folder}
    for entry in sorted(folder.iterdir()):
        if is_hidden(entry.name):
            listing.skipped[HIDDEN] += count_files(entry)
        elif not entry.is_dir():
            listing.skipped[OUTSIDE_CLASSES] += 1
        else:
            _check_link(entry, places)
            name = _class_name(entry, listing.files)
            found: Counter[str] = Counter()
            listing.files[name] = _images_in(entry, found)
            listing.skipped.update(found)
            if not listing.files[name]:
                reasons = f" ({describe_skipped(found)} skipped)" if found else ""
                raise InputError(f"class folder {entry} has no images{reasons}; fill or remove it")
    return listing


def count_files(path: Path) -> int:
    """Return the number of files in a folder and in its folders; 1 for a file."""
    return sum(1 for _ in _walk(path)) if path.is_dir() and not path.is_symlink() else 1


def describe_skipped(skipped: Mapping[str, int]) -> str:
    """Return the numbers of skipped files with their reasons, the most frequent first."""
    most = Counter(skipped).most_common(LISTED_REASONS)
    parts = [f"{count} {reason}" for reason, count in most]
    rest = sum(skipped.values()) - sum(count for _, count in most)
    return ", ".join([*parts, *([f"{rest} others"] if rest else [])])


def _class_name(entry: Path, known: Mapping[str, list[Path]]) -> str:
    """Return the name of a class folder; refuse one that no plan file can hold."""
    if unsafe_text(entry.name) or "\n" in entry.name or "\t" in entry.name:
        raise InputError(
            f"the name of class folder {entry} is no text in UTF-8, or has control characters; "
            "rename it"
        )
    name = unicodedata.normalize("NFC", entry.name)
    if name in known:
        raise InputError(
            f"two class folders in {entry.parent} have the name {name!r} in two forms of Unicode; "
            "rename or remove one"
        )
    return name


def _check_link(entry: Path, places: dict[Path, Path]) -> None:
    """Refuse a class folder that is, by a link, another one or a folder around it."""
    place = entry.resolve()
    for other_place, other in places.items():
        if other_place.is_relative_to(place):
            raise InputError(f"class folder {entry} is a link to {other}; remove it")
    places[place] = entry


def _images_in(folder: Path, skipped: Counter[str]) -> list[Path]:
    """Return the images in a class folder in order; count the other files in ``skipped``."""
    images = []
    identities = set()
    for path in sorted(_walk(folder)):
        reason, identity = _judge(path, folder)
        if identity is not None and identity in identities:
            reason = LINKED_TWICE
        if reason is not None:
            skipped[reason] += 1
            continue
        images.append(path)
        identities.add(identity)
    return images


def _judge(path: Path, folder: Path) -> tuple[str | None, tuple[int, int] | None]:
    """Return why a file is left out (None if it is an image), and the file's device and inode."""
    if any(is_hidden(name) for name in path.relative_to(folder).parts):
        return HIDDEN, None
    try:
        found = path.stat()
    except OSError:  # a link to nothing, or to itself
        return NOT_A_FILE, None
    if stat.S_ISDIR(found.st_mode):
        return LINKED_FOLDER, None
    if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
        return NOT_A_FILE, None
    if is_image_file(path):
        return None, (found.st_dev, found.st_ino) if found.st_ino else None
    return path.suffix.lower()[:12] or NO_SUFFIX, None


def _walk(folder: Path) -> Iterator[Path]:
    """Yield every file and every link to a folder, in a folder and in its folders."""

    def fail(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=fail):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        yield from (Path(place, name) for name in (*files, *links))
