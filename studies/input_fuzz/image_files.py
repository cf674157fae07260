"""Mutants of images and of their folders: decoded to RGB, or refused in one line."""

from __future__ import annotations

import io
import os
import shutil
import struct
import zlib
from pathlib import Path
from random import Random

import numpy as np
import torch
from outcome import FaultError
from PIL import Image

from planner.training.images.image_files import check_image, open_image
from planner.training.images.load import load_data

SIDE = 24

FORMATS = (
    ("PNG", "RGB"), ("PNG", "P"), ("PNG", "I;16"), ("PNG", "LA"), ("PNG", "1"), ("JPEG", "RGB"),
    ("JPEG", "L"), ("JPEG", "CMYK"), ("GIF", "P"), ("BMP", "RGB"), ("TIFF", "RGB"), ("TIFF", "F"),
    ("TIFF", "I;16"), ("WEBP", "RGBA"), ("PPM", "RGB"), ("ICO", "RGBA"), ("TGA", "RGB"),
    ("JPEG2000", "RGB"),
)  # fmt: skip
"""Formats and modes of the whole images."""

NAMES = ("a b.png", "-rf.png", "{}.png", "%s.png", "é.png", "a\nb.png", "\x1b[2J.png", "x.PNG",
         "noend", ".hidden.png", "a.txt", "x" * 200 + ".png")  # fmt: skip


class ImageTarget:
    """Damages images, and folders of images.

    Args:
        folder: folder for the files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.whole = [data for pair in FORMATS if (data := _encoded(*pair)) is not None]

    def check(self, rng: Random) -> None:
        """Read a damaged image, or load a strange folder.

        Raises:
            BudgetplanError: it is refused.
            FaultError: an image is not RGB, or a value is not finite.
        """
        if rng.random() < 0.15:
            self._check_folder(rng)
            return
        path = self.folder / f"image{rng.choice(('.png', '.jpg', '.tif', '.bmp', '.webp', ''))}"
        path.write_bytes(_mutant(rng.choice(self.whole), rng))
        try:
            check_image(path)
            image = open_image(path)
        finally:
            path.unlink()
        if image.mode != "RGB" or image.width < 1 or image.height < 1:
            raise FaultError(f"an image of mode {image.mode} and size {image.size} was read")
        if np.asarray(image).dtype != np.uint8:
            raise FaultError("an image has other values than bytes")

    def _check_folder(self, rng: Random) -> None:
        root = self.folder / "data"
        shutil.rmtree(root, ignore_errors=True)
        for name in ("circle", "square"):
            (root / name).mkdir(parents=True)
            for index in range(6):
                (root / name / f"{index}.png").write_bytes(self.whole[index % 2])
        for _ in range(rng.choice((1, 2, 4))):
            self._change_tree(root, rng)
        images = load_data(str(root), image_size=16, mean=(0.5,) * 3, std=(0.5,) * 3)
        for part in (images.train, images.test):
            for index in range(len(part)):
                pixels, label = part[index]
                if not bool(torch.isfinite(pixels).all()) or label not in (0, 1, 2, 3):
                    raise FaultError("a value is not finite, or a label is out of range")

    def _change_tree(self, root: Path, rng: Random) -> None:
        """Add, remove or replace an entry of the tree."""
        places = [root, *(path for path in root.rglob("*") if path.is_dir())]
        place = rng.choice(places)
        entry = place / rng.choice(NAMES)
        kind = rng.randrange(10)
        if entry.is_symlink() or entry.exists():
            kind = 9
        if kind == 0:
            entry.symlink_to(rng.choice(("/", "/etc", "..", ".", "nowhere", entry.name)))
        elif kind == 1:
            os.mkfifo(entry)
        elif kind == 2:
            entry.mkdir()
        elif kind == 3:
            if place == root:
                (root / "empty").mkdir(exist_ok=True)
            elif place.is_symlink():
                place.unlink()
            else:
                shutil.rmtree(place)
        elif kind == 4:
            files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
            if files:
                rng.choice(files).unlink()
        elif kind == 5:
            name = os.fsencode(place) + b"/bad\xff\xfe.png"
            Path(os.fsdecode(name)).write_bytes(self.whole[0])
        elif kind == 6:
            (root / rng.choice(("train", "test", "val", "Training"))).mkdir(exist_ok=True)
        else:
            files = [path for path in root.rglob("*.png") if path.is_file()]
            target = rng.choice(files) if files and kind == 9 else entry
            target.write_bytes(_mutant(rng.choice(self.whole), rng))


def _encoded(kind: str, mode: str) -> bytes | None:
    """Return a small whole image; None where Pillow lacks the format."""
    ramp = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 251
    if mode == "I;16":
        image = Image.fromarray((ramp * 257).astype(np.uint16))
    elif mode == "F":
        image = Image.fromarray(ramp.astype(np.float32) / 251)
    else:
        image = Image.fromarray(ramp.astype(np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    try:
        options = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}
        image.save(buffer, format=kind, **options)
    except (OSError, KeyError, ValueError):
        return None
    return buffer.getvalue()


def _mutant(data: bytes, rng: Random) -> bytes:
    """Return damaged bytes: flips, cuts, sizes of a header, chunks of a PNG."""
    changed = bytearray(data)
    kind = rng.random()
    if kind < 0.45:
        for _ in range(rng.choice((1, 2, 8, 50))):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    elif kind < 0.60:
        del changed[rng.randrange(len(changed)) :]
    elif kind < 0.80:  # numbers in the header: sizes, offsets, counts
        at = rng.randrange(min(len(changed) - 8, 120))
        number = rng.choice((0, 1, 2, 255, 65_535, 20_000, 2**31 - 1, 2**31, 2**32 - 1))
        struct.pack_into(rng.choice("<>") + "I", changed, at, number)
    elif kind < 0.90 and changed.startswith(b"\x89PNG"):
        return _with_chunk(bytes(changed), rng)
    else:
        at = rng.randrange(len(changed))
        changed[at:at] = rng.randbytes(rng.choice((1, 16, 500)))
    if changed.startswith(b"\x89PNG") and rng.random() < 0.5:
        return _with_right_sums(bytes(changed))
    return bytes(changed)


def _with_chunk(data: bytes, rng: Random) -> bytes:
    """Return a PNG with one more chunk after its header."""
    kind = rng.choice(
        (b"tRNS", b"PLTE", b"zTXt", b"iTXt", b"eXIf", b"iCCP", b"IHDR", b"acTL", b"fcTL")
    )
    body = rng.choice(
        (
            b"",
            rng.randbytes(40),
            b"a\0\0" + zlib.compress(bytes(10**7)),
            b"Exif\0\0MM\0*" + bytes(40),
        )
    )
    chunk = struct.pack(">I", len(body)) + kind + body
    chunk += struct.pack(">I", zlib.crc32(kind + body))
    return data[:33] + chunk + data[33:]


def _with_right_sums(data: bytes) -> bytes:
    """Return a PNG whose chunks have right checksums, so that damage reaches the decoder."""
    out, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            break
        out += data[at:end] + struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(out) + data[at:]
