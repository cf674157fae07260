"""Images of public bug reports. The first line of each test names the report."""

from __future__ import annotations

import os
import unicodedata

import numpy as np
import pytest
from pictures import SHAPE, paint
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from planner.training.images.image_files import open_image
from planner.training.images.listing import list_classes
from planner.training.images.load import load_data
from profiler.errors import InputError


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


@pytest.mark.parametrize("kind", ["text", "profile"])
def test_large_metadata_of_a_png_is_no_fault(tmp_path, kind):
    """hiyouga/LlamaFactory#6300, python-pillow/Pillow#8363: Pillow refuses more than 1 MiB."""
    text = PngInfo()
    text.add_text("workflow", "x" * (3 << 20), zip=True)
    metadata = {"pnginfo": text} if kind == "text" else {"icc_profile": bytes(3 << 20)}
    drawing = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    Image.fromarray(drawing).save(tmp_path / "edited.png", **metadata)
    assert np.array_equal(np.asarray(open_image(tmp_path / "edited.png")), drawing)


def test_an_accent_in_one_or_two_characters_is_the_same_class(tmp_path):
    """uewepuep/FPVTracksideCore#75: macOS writes the training part, Linux the other one."""
    forms = {"train": "NFD", "val": "NFC"}
    for part, form in forms.items():
        for name in ("caf\u00e9", "bar"):
            folder = tmp_path / part / unicodedata.normalize(form, name)
            folder.mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (16, 16), (i, 0, len(part))).save(folder / f"{i}.png")
    data = load_data(str(tmp_path), image_size=16, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert data.class_names == ("bar", "caf\u00e9")
    assert data.test.labels == [0, 0, 0, 1, 1, 1]
    both = tmp_path / "train" / "caf\u00e9"
    both.mkdir()
    with pytest.raises(InputError, match="two forms of Unicode"):
        list_classes(tmp_path / "train")


@pytest.mark.parametrize("name", [b"caf\xe9", b"a\nb", b"\x1b[2J", "\u202ecat".encode()])
def test_a_class_whose_name_no_file_can_hold_is_refused_before_work(flat, name):
    """hooram/ownphotos#112: a folder from another system, with Latin-1 in its name."""
    os.rename(os.fsencode(flat / "cat"), os.fsencode(flat) + b"/" + name)
    with pytest.raises(InputError, match="rename it"):
        list_classes(flat)


def test_an_image_whose_name_is_no_text_is_an_image(flat):
    """arsenetar/dupeguru#335: the same for a file."""
    photo = paint(flat / "cat" / "photo.png")
    os.rename(os.fsencode(photo), os.fsencode(flat / "cat") + b"/caf\xe9.png")
    assert any(b"\xe9" in os.fsencode(path) for path in list_classes(flat).files["cat"])


def test_frames_of_a_phones_panorama_are_one_image(flat):
    """ultralytics/yolov5#2446: a JPEG with several frames, which Pillow calls MPO."""
    frames = [Image.new("RGB", (32, 32), (255 * i, 0, 0)) for i in range(2)]
    frames[0].save(flat / "cat" / "wide.jpg", format="MPO", save_all=True, append_images=frames[1:])
    assert flat / "cat" / "wide.jpg" in list_classes(flat).files["cat"]
    assert open_image(flat / "cat" / "wide.jpg").getpixel((9, 9)) == (0, 0, 0)


def test_links_to_images_and_to_class_folders_are_followed(flat, tmp_path):
    """huggingface/datasets#5098, fastai/fastai#2270: the class is that of the link."""
    linked = tmp_path / "linked"
    (linked / "tiger").mkdir(parents=True)
    (linked / "dog").symlink_to(flat / "dog")
    for path in (flat / "cat").iterdir():
        (linked / "tiger" / path.name).symlink_to(path)
    plain, found = list_classes(flat), list_classes(linked)
    assert list(found.files) == ["dog", "tiger"]
    assert len(found.files["tiger"]) == len(plain.files["cat"]) > 0
    assert len(found.files["dog"]) == len(plain.files["dog"]) > 0
