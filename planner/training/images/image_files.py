"""Image files, decoded by Pillow. Every error is one line that names the file."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiler.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    Pixels = np.ndarray[Any, np.dtype[np.uint8]]

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)


def open_image(source: Path | Pixels) -> Image:
    """Return an image in RGB.

    Args:
        source: file, or pixels of shape [H, W] or [H, W, 3].

    Raises:
        InputError: the file cannot be read or decoded.
    """
    from PIL import Image

    if not isinstance(source, Path):
        return Image.fromarray(source).convert("RGB")
    with _decoding(source), Image.open(source) as opened:
        # Pillow warns when it converts a palette with transparency to RGB directly.
        return (opened.convert("RGBA") if "transparency" in opened.info else opened).convert("RGB")


def check_header(path: Path) -> None:
    """Open an image file without decoding its pixels.

    A file that is damaged further in is found only when the image is used.

    Raises:
        InputError: the file cannot be read, or is not an image.
    """
    from PIL import Image

    with _decoding(path), Image.open(path):
        pass


@contextlib.contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Turn every error of Pillow into an ``InputError`` that names the file."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about unusual metadata
            yield
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(
            f"cannot read image {path}: {error_text(error)}; repair or remove it"
        ) from error


def error_text(error: BaseException) -> str:
    """Return the message of an error on one line, or its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
