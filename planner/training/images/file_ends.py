"""Whether the end of an image file is missing, from a few bytes and without decoding.

A copy or download that was interrupted leaves a file whose header is intact. Pillow opens it and
fails when it decodes the pixels. Each format has a sign of its end:

    JPEG, MPO, JPEG 2000   the marker that ends the image, within the last bytes of the file
    PNG                    the chunk IEND, likewise
    GIF                    the end of a block, and the trailer
    BMP, WebP              the size of the file in its header
    AVIF                   the sizes of its boxes
    TIFF                   the places and sizes of its strips or tiles
    PPM, PGM               the size of the pixels, if these have 8 bits a channel

A file without the sign can still be whole: some cameras write a video behind a JPEG. A file that is
damaged before its end has the sign.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

TAIL_BYTES = 64
"""Last bytes that are searched. The tables between a JPEG's thumbnail and its pixels are longer,
so the end of the thumbnail is not taken for that of the image."""

_END_OF_IMAGE = b"\xff\xd9"
_STRIPS = ((273, 279), (324, 325))
"""Tags of TIFF: offsets and bytes of the strips, and of the tiles."""


def may_be_cut(image: Image) -> bool:
    """Return whether an opened image file lacks the sign of its end, or has a format without one.

    Args:
        image: image that is opened and not decoded.
    """
    check, file = _CHECKS.get(image.format or ""), getattr(image, "fp", None)
    if check is None or file is None:
        return True
    place = file.tell()
    try:
        return not check(image, file, os.fstat(file.fileno()).st_size)
    finally:
        file.seek(place)


def _ends_with_marker(image: Image, file: IO[bytes], size: int) -> bool:
    return _END_OF_IMAGE in _tail(file, size)


def _ends_with_chunk(image: Image, file: IO[bytes], size: int) -> bool:
    return b"IEND" in _tail(file, size)


def _ends_with_trailer(image: Image, file: IO[bytes], size: int) -> bool:
    return _tail(file, size).endswith(b"\0;")


def _tail(file: IO[bytes], size: int) -> bytes:
    file.seek(max(0, size - TAIL_BYTES))
    return file.read(TAIL_BYTES)


def _has_size_of_bmp(image: Image, file: IO[bytes], size: int) -> bool:
    return 0 < _integer(file, at=2) <= size


def _has_size_of_riff(image: Image, file: IO[bytes], size: int) -> bool:
    return _integer(file, at=4) + 8 <= size


def _integer(file: IO[bytes], *, at: int) -> int:
    file.seek(at)
    return int.from_bytes(file.read(4), "little")


def _has_boxes(image: Image, file: IO[bytes], size: int) -> bool:
    """Return whether the boxes of a file (ISO/IEC 14496-12) end with it, one with pixels too."""
    at, has_pixels = 0, False
    while at < size:
        file.seek(at)
        header = file.read(16)
        has_pixels = has_pixels or header[4:8] == b"mdat"
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        elif length == 0:  # to the end of the file, wherever that is
            return False
        at += max(length, 8)
    return has_pixels and at == size


def _has_strips(image: Image, file: IO[bytes], size: int) -> bool:
    tags = getattr(image, "tag_v2", {})
    for offsets, lengths in _STRIPS:
        if offsets in tags and lengths in tags:
            strips = zip(tags[offsets], tags[lengths], strict=False)
            return all(offset + length <= size for offset, length in strips)
    return False


def _has_pixels(image: Image, file: IO[bytes], size: int) -> bool:
    tile = image.tile[0]  # type: ignore[attr-defined]
    if tile[0] != "raw" or image.mode not in {"L", "RGB"}:
        return False
    return bool(tile[2] + image.width * image.height * len(image.mode) <= size)


_CHECKS: dict[str, Callable[[Image, IO[bytes], int], bool]] = {
    "AVIF": _has_boxes,
    "BMP": _has_size_of_bmp,
    "GIF": _ends_with_trailer,
    "JPEG": _ends_with_marker,
    "JPEG2000": _ends_with_marker,
    "MPO": _ends_with_marker,
    "PNG": _ends_with_chunk,
    "PPM": _has_pixels,
    "TIFF": _has_strips,
    "WEBP": _has_size_of_riff,
}
"""Function of each format that returns whether a file has the sign of its end."""
