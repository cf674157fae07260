"""Image files, decoded by Pillow. Every error is one line that names the file.

Pillow recognizes a format by the file's content. Formats that it only identifies (HDF5, MPEG) or
hands to another program (EPS, to Ghostscript) are left out under every suffix.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from planner.training.images.bit_depth import check_depth, to_rgb
from planner.training.images.file_ends import may_be_cut
from profiler.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    Pixels = np.ndarray[Any, np.dtype[np.uint8]]

UNSUPPORTED_FORMATS = frozenset(("EPS", "MPEG"))
"""Formats of Pillow that run another program, or that it identifies without decoding."""

FORMATS_WITHOUT_SUFFIX = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "TIFF", "WEBP")
"""Formats that a file without a suffix may have. Their first bytes are unmistakable."""

SUFFIXES_OF_PHONES = frozenset((".heic", ".heif"))
"""Suffixes that phones also give to JPEG files, when they convert a photo but keep its name."""

TRANSPOSE_OF_ORIENTATION = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""Pillow's transposition that turns an image upright, by the EXIF orientation.

``ImageOps.exif_transpose`` has the same table, but fails where other EXIF entries are damaged.
"""

_ORIENTATION_TAG = 0x0112

LARGEST_METADATA_BYTES = 64 << 20
"""Limit of a text or a colour profile of a PNG file, unpacked. Pillow has it for their sum.
Its limit of each is 1 MiB, and image editors and generators write more."""

NAMED_FAULTS = 3
"""Most files that the message about unreadable images names."""

LONGEST_REASON = 48
"""Characters of the reason of each: an error has ``profiler.errors.LONGEST_MESSAGE``."""


@cache
def image_formats() -> tuple[str, ...]:
    """Return the names of the formats that Pillow decodes itself."""
    from PIL import Image
    from PIL.ImageFile import StubImageFile

    Image.init()
    return tuple(
        name
        for name, (factory, _) in Image.OPEN.items()
        if name not in UNSUPPORTED_FORMATS
        and not (isinstance(factory, type) and issubclass(factory, StubImageFile))
    )


@cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes of these formats, in lower case and with the dot."""
    from PIL import Image

    registered = Image.registered_extensions()
    formats = {*image_formats(), "MPO"}  # Pillow opens MPO as JPEG
    return frozenset(suffix for suffix, name in registered.items() if name in formats)


def is_image_file(path: Path) -> bool:
    """Return whether a file is an image: by its suffix, or without a known one by its content."""
    suffix = path.suffix.lower()
    if suffix in image_suffixes():
        return True
    if suffix and suffix not in SUFFIXES_OF_PHONES:
        return False
    try:
        with _opened(path, tuple(set(FORMATS_WITHOUT_SUFFIX) & set(image_formats()))):
            return True
    except InputError:
        return False


def open_image(source: Path | Pixels) -> Image:
    """Return an image in RGB with 8 bits a channel; of several frames or pages, the first.

    Args:
        source: file, or pixels of shape [H, W] or [H, W, 3].

    Raises:
        InputError: the file cannot be read or decoded.
    """
    from PIL import Image

    if not isinstance(source, Path):
        return Image.fromarray(source).convert("RGB")
    with _opened(source, image_formats()) as opened:
        opened.load()
        image = to_rgb(opened)
        name = TRANSPOSE_OF_ORIENTATION.get(_orientation(opened))
        return image if name is None else image.transpose(Image.Transpose[name])


def _orientation(image: Image) -> int:
    """Return the EXIF orientation of an image; 1, which is upright, if it cannot be read."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF data; the pixels can be intact
        return 1


def check_images(paths: Sequence[Path], folder: Path) -> None:
    """Check image files as ``check_image`` does, all of them before the first fault is reported.

    Args:
        paths: image files.
        folder: folder that the message names the files in.

    Raises:
        InputError: files cannot be read or are no images: their number and the first few.
    """
    faults: list[tuple[Path, InputError]] = []
    for path in sorted(paths):
        try:
            check_image(path)
        except InputError as error:
            faults.append((path, error))
    if len(faults) == 1:
        raise faults[0][1]
    if faults:
        first = faults[:NAMED_FAULTS]
        named = [f"{_name_within(folder, path)} ({_short_reason(e)})" for path, e in first]
        more = len(faults) - len(named)
        raise InputError(
            f"{len(faults)} of {len(paths)} images cannot be read: {', '.join(named)}"
            f"{f' and {more} more' if more else ''}; repair, convert or remove them"
        )


def check_image(path: Path) -> None:
    """Open an image file; decode its pixels only if its end may be missing.

    A file that is damaged before its end is found only when the image is used.

    Raises:
        InputError: the file cannot be read, is not an image, or is incomplete.
    """
    with _opened(path, image_formats()) as opened:
        check_depth(opened)
        if may_be_cut(opened):
            opened.draft("RGB", (1, 1))  # reads all of a JPEG, computes an eighth of its size
            opened.load()


def _name_within(folder: Path, path: Path) -> str:
    """Return the name of a file within a folder, or its whole path outside of it."""
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()


def _short_reason(error: InputError) -> str:
    """Return why an image cannot be read, in a few words and without the name of the file."""
    cause = error.__cause__
    return shorten("not a regular file" if cause is None else error_text(cause), LONGEST_REASON)


@contextlib.contextmanager
def _opened(path: Path, formats: tuple[str, ...]) -> Iterator[Image]:
    """Open an image file; every error becomes an ``InputError`` that names the file."""
    from PIL import Image

    _take_large_metadata()
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise InputError(f"image {path} is not a regular file; repair, convert or remove it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about unusual metadata
            with Image.open(path, formats=formats) as opened:
                yield opened
    except MemoryError:  # not a fault of the file: a training can continue with less memory
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"image {path} is too large: {error_text(error)}; shrink it") from error
    except Exception as error:  # decoders of damaged files raise errors of many classes
        raise InputError(
            f"cannot read image {path}: {error_text(error)}; repair, convert or remove it"
        ) from error


@cache
def _take_large_metadata() -> None:
    """Raise Pillow's limit of a text in a PNG file, in this process and for good.

    Batches are decoded in threads, so a limit that is put back after each image would fail some.
    """
    from PIL import PngImagePlugin

    PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, LARGEST_METADATA_BYTES)


def error_text(error: BaseException) -> str:
    """Return the message of an error on one line, or its class where it has none."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):  # its own message repeats the path
        return "not an image of a known format"
    return " ".join(str(error).split())[:160] or type(error).__name__
