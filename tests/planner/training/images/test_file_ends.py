"""Image files that are cut: they are found when a folder is read, not when the image is used."""

from __future__ import annotations

import io

import numpy as np
import pytest
from pictures import SHAPE, paint, refused
from PIL import Image, features

from planner.training.images.file_ends import may_be_cut
from planner.training.images.image_files import check_image, open_image
from planner.training.images.load import load_data
from profiler.errors import InputError

NOISE = np.random.default_rng(0).integers(0, 255, (12, 18, 3), dtype=np.uint8)
PICTURE = Image.fromarray(NOISE)
TWO = {"save_all": True, "append_images": [PICTURE.rotate(180)]}

WITH_SIGN = [
    ("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("GIF", {}), ("GIF", TWO),
    ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("PPM", {}), ("MPO", TWO),
    ("WEBP", {}), ("JPEG2000", {}), ("AVIF", {}),
]  # fmt: skip
"""Formats of which a whole file is told from its last bytes or its header."""

WITHOUT_SIGN: list[tuple[str, dict[str, object]]] = [("TGA", {}), ("PCX", {}), ("SGI", {})]

PILLOW_FEATURE = {"WEBP": "webp", "JPEG2000": "jpg_2000", "AVIF": "avif"}


def encoded(kind, options):
    if not features.check(PILLOW_FEATURE.get(kind, "pil")):
        pytest.skip(f"this Pillow has no {kind}")
    file = io.BytesIO()
    PICTURE.save(file, format=kind, **options)
    return file.getvalue()


def is_read_by(function, path):
    try:
        function(path)
    except InputError:
        return False
    return True


@pytest.mark.parametrize(("kind", "options"), [*WITH_SIGN, *WITHOUT_SIGN])
def test_a_file_passes_wherever_it_is_cut_if_and_only_if_it_can_be_decoded(tmp_path, kind, options):
    path, whole = tmp_path / "cut", encoded(kind, options)
    for count in range(len(whole) + 1):
        path.write_bytes(whole[:count])
        assert is_read_by(check_image, path) == is_read_by(open_image, path), count
    assert is_read_by(check_image, path)
    for behind in (bytes(10), b"MotionPhoto_Data", bytes(5000)):
        path.write_bytes(whole + behind)
        assert is_read_by(check_image, path)


@pytest.mark.parametrize(("kind", "options"), WITH_SIGN)
def test_a_whole_file_is_not_decoded(tmp_path, kind, options):
    path, whole = tmp_path / "whole", encoded(kind, options)
    path.write_bytes(whole)
    with Image.open(path) as image:
        assert not may_be_cut(image)


def test_the_end_of_a_thumbnail_is_not_that_of_the_image(tmp_path):
    path, thumbnail = tmp_path / "photo.jpg", io.BytesIO()
    PICTURE.save(thumbnail, format="JPEG")
    exif = b"Exif\0\0" + b"II*\0\x08\0\0\0\0\0\0\0\0\0" + thumbnail.getvalue()
    PICTURE.save(path, exif=exif)
    whole = path.read_bytes()
    for count in range(whole.index(b"\xff\xd9") + 2, len(whole)):
        path.write_bytes(whole[:count])
        assert is_read_by(check_image, path) == is_read_by(open_image, path), count


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_cut_image_is_named_when_the_folder_is_read(flat, suffix):
    path = paint(flat / "dog" / f"cut.{suffix}", size=(400, 300))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(flat, rf"cannot read image .*cut\.{suffix}: .*truncated.*; repair, convert or remove")


def test_all_images_that_cannot_be_read_are_counted_and_the_first_are_named(flat):
    (flat / "cat" / "a.jpg").write_bytes(b"no image")
    cut = paint(flat / "cat" / "b.jpg", size=(400, 300))
    cut.write_bytes(cut.read_bytes()[:3000])
    refused(
        flat,
        r"^2 of 32 images cannot be read: cat/a\.jpg \(not an image of a known format\), "
        r"cat/b\.jpg \(.*truncated.*\); repair, convert or remove them$",
    )
    for name in ("dog/a.png", "dog/b.png", "emu/a.png"):
        (flat / name).write_bytes(b"")
    refused(flat, r"^5 of 35 images .*cat/a\.jpg .*cat/b\.jpg .*dog/a\.png .* and 2 more; repair")
    for name in ("cat/a.jpg", "cat/b.jpg", "dog/a.png", "dog/b.png", "emu/a.png"):
        (flat / name).unlink()
    assert load_data(str(flat), **SHAPE).source.held_out_images == 6
