"""Conversion of decoded pixels to RGB with 8 bits a channel, without clipping.

Pillow's own conversion to RGB clips gray values above 255. Here, gray values of more than 8 bits
are scaled by the white of their file:

    I;16    65535; in a TIFF, 2**bits - 1 of its BitsPerSample
    I       65535 in PNG, PPM and PGM, whose integers Pillow scales to 16 bits; other files refused
    F       1; an image with values outside of 0 to 1 is refused

In the refused files (32-bit and signed integers, floats of another range) the numbers are
measurements, and no value is known to be white. Colours of 16 bits a channel need nothing: Pillow's
decoders keep their upper 8 bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

SIXTEEN_BITS = 65535
FORMATS_OF_16_BITS = frozenset(("JPEG2000", "PNG", "PPM", "TIFF"))
"""Formats whose integers of more than 8 bits are unsigned, and have at most 16 bits."""

_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
"""Tags of TIFF."""


def to_rgb(image: Image) -> Image:
    """Return an image in RGB with 8 bits a channel. Transparency is dropped, not blended.

    Args:
        image: decoded image in any mode of Pillow.

    Raises:
        ValueError: the image has a bit depth whose white is not known, or Pillow cannot convert it.
    """
    import numpy as np
    from PIL import Image as PillowImage

    check_depth(image)
    if not _is_deep(image):
        # Pillow warns when it converts a palette with transparency to RGB directly.
        return (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")
    values = np.asarray(image)
    if image.mode == "F":
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):  # NaN as well
            raise ValueError(f"float pixels must be from 0 to 1, got {low:g} to {high:g}")
        scaled = np.rint(values * 255.0)
    else:
        scaled = _scaled_integers(values, white=_white_of(image))
    gray = scaled.astype(np.uint8)
    if _tiff_tag(image, _PHOTOMETRIC) == 0:  # white is zero; Pillow inverts only 8 bits and fewer
        gray = 255 - gray
    return PillowImage.fromarray(gray).convert("RGB")


def check_depth(image: Image) -> None:
    """Check that the bit depth of an opened image has a known white.

    Raises:
        ValueError: signed integers, or integers of more than 16 bits.
    """
    if image.mode != "F" and _is_deep(image):
        known = image.format in FORMATS_OF_16_BITS
        if not known or (image.mode == "I" and image.format == "TIFF"):
            raise ValueError(
                f"expected 8 or 16 unsigned bits a channel, got {image.mode!r} pixels of "
                f"{image.format}, whose white is not known"
            )


def _is_deep(image: Image) -> bool:
    return image.mode in {"I", "F"} or image.mode.startswith("I;16")


def _white_of(image: Image) -> int:
    """Return the largest integer that a pixel of the image's file can be."""
    bits = _tiff_tag(image, _BITS_PER_SAMPLE) if image.mode != "I" else None
    if isinstance(bits, tuple) and bits and 8 < bits[0] <= 16:
        return int(2 ** bits[0] - 1)
    return SIXTEEN_BITS


def _scaled_integers(values: np.ndarray[Any, Any], *, white: int) -> np.ndarray[Any, Any]:
    import numpy as np

    clean = values.astype(np.int64).clip(0, white)  # a damaged file can exceed its own bit depth
    return (clean * 255 + white // 2) // white


def _tiff_tag(image: Image, tag: int) -> Any:
    """Return the value of a TIFF's tag; None in another format or without the tag."""
    tags = getattr(image, "tag_v2", None)
    return None if tags is None or image.format != "TIFF" else tags.get(tag)
