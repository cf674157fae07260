"""Images of public bug reports. The first line of each test names the report."""

from __future__ import annotations

import numpy as np
import pytest
from pictures import SHAPE, paint
from PIL import Image

from planner.training.images.image_files import open_image
from planner.training.images.listing import list_classes
from planner.training.images.load import load_data


@pytest.mark.parametrize("suffix", [".HEIC", ".heif"])
def test_a_jpeg_that_a_phone_names_heic_is_an_image(flat, suffix):
    """strukturag/libheif#111; a real HEIC file is named and skipped (replicate/dreambooth#23)."""
    photo = paint(flat / "cat" / "photo.jpg")
    photo.rename(photo.with_suffix(suffix))
    (flat / "cat" / "real.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    listing = list_classes(flat)
    assert photo.with_suffix(suffix) in listing.files["cat"]
    assert listing.skipped == {".heic": 1}
    assert open_image(photo.with_suffix(suffix)).size == (40, 30)


def test_a_palette_holds_indices_and_not_gray_values(tmp_path):
    """python-pillow/Pillow#7045: an X-ray whose palette runs from white to black."""
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16), mode="P")
    image.putpalette([value for gray in range(255, -1, -1) for value in (gray,) * 3])
    image.save(tmp_path / "x-ray.png")
    expected = 255 - np.arange(256).reshape(16, 16)
    assert np.array_equal(np.asarray(open_image(tmp_path / "x-ray.png"))[..., 0], expected)


def test_transparency_of_single_palette_entries_gives_no_warning(tmp_path):
    """fastai/fastbook#385: transparency in bytes; the colours stay those of the palette."""
    image = Image.fromarray(np.array([[0, 1], [2, 3]], dtype=np.uint8), mode="P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    image.save(tmp_path / "icon.png", transparency=bytes([255, 128, 0, 255]))
    pixels = np.asarray(open_image(tmp_path / "icon.png"))
    assert pixels.tolist() == [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 9, 9]]]


def test_bilevel_bitmaps_have_the_same_white(tmp_path):
    """python-pillow/Pillow#3276: one bit and eight bits of the same drawing."""
    drawing = np.array([[0, 255], [255, 0]], dtype=np.uint8)
    Image.fromarray(drawing).save(tmp_path / "eight.bmp")
    Image.fromarray(drawing).convert("1").save(tmp_path / "one.bmp")
    for name in ("eight.bmp", "one.bmp"):
        assert np.array_equal(np.asarray(open_image(tmp_path / name))[..., 0], drawing)


def test_classes_with_numbers_as_names_keep_their_images(tmp_path):
    """pytorch/vision#714, CSAILVision/places365#22: 10 sorts before 2 as text."""
    for number in range(1, 12):
        for i in range(3):
            shade = Image.new("RGB", (32, 32), (20 * number, 0, i))
            (tmp_path / str(number)).mkdir(exist_ok=True)
            shade.save(tmp_path / str(number) / f"{i}.png")
    data = load_data(str(tmp_path), **SHAPE)
    assert sorted(data.class_names, key=int) == [str(n) for n in range(1, 12)]
    for part in (data.train, data.test):
        for path, label in zip(part.images, part.labels, strict=True):
            assert path.parent.name == data.class_names[label]
