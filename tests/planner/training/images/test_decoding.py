"""Pixels of every bit depth and orientation, and files that are damaged or no images."""

from __future__ import annotations

import io
import os
import random
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from planner.training.images.crops import centre_crop, random_crop
from planner.training.images.image_files import (
    check_image,
    image_formats,
    image_suffixes,
    open_image,
)
from planner.training.images.image_set import ImageSet, InputFormat
from profiler.errors import InputError

RAMP = np.linspace(0, 1, 64 * 48).reshape(48, 64)
BYTES = np.rint(RAMP * 255).astype(np.uint8)


def gray(path):
    check_image(path)
    image = open_image(path)
    assert image.mode == "RGB"
    pixels = np.asarray(image)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def tiff(path, array, *, bits, fmt=1, photometric=1):
    """Write an uncompressed little-endian TIFF without Pillow."""
    data = array.tobytes()
    height, width = array.shape
    tags = [
        (256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric),
        (273, 4, 8), (277, 3, 1), (278, 3, height), (279, 4, len(data)), (339, 3, fmt),
    ]  # fmt: skip
    entries = b"".join(
        struct.pack("<HHI", tag, kind, 1) + struct.pack("<HH" if kind == 3 else "<I", *values)
        for tag, kind, value in tags
        for values in [(value, 0) if kind == 3 else (value,)]
    )
    header = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    path.write_bytes(header + data + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0))
    return path


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm", "jp2"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path, suffix):
    path = tmp_path / f"deep.{suffix}"
    deep = np.rint(RAMP * 65535).astype(np.uint16)
    options = {"irreversible": False} if suffix == "jp2" else {}
    Image.fromarray(deep).save(path, **options)
    assert np.abs(gray(path).astype(int) - BYTES).max() <= 1
    assert gray(path).max() == 255


def test_sixteen_bits_of_the_other_byte_order(tmp_path):
    deep = np.rint(RAMP * 65535).astype(">u2")
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    with Image.open(tmp_path / "deep.tif") as opened:
        assert opened.mode == "I;16B"
    assert np.array_equal(gray(tmp_path / "deep.tif"), BYTES)


def test_white_is_zero_is_inverted_at_every_depth(tmp_path):
    deep = np.rint(RAMP * 65535).astype("<u2")
    eight = tiff(tmp_path / "8.tif", BYTES, bits=8, photometric=0)
    sixteen = tiff(tmp_path / "16.tif", deep, bits=16, photometric=0)
    assert np.array_equal(gray(eight), 255 - BYTES)
    assert np.array_equal(gray(sixteen), 255 - BYTES)


def test_twelve_bits_have_4095_as_white(tmp_path):
    values = np.arange(0, 4096, 64, dtype=np.uint16).reshape(8, 8)
    pairs = values.reshape(-1, 2).astype(np.uint32)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1]])
    path = tiff(tmp_path / "12.tif", packed.T.astype(np.uint8).reshape(8, 12), bits=12)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(struct.pack("<HHIHH", 256, 3, 1, 12, 0),
                                 struct.pack("<HHIHH", 256, 3, 1, 8, 0)))  # fmt: skip
    assert np.array_equal(gray(path), np.rint(values / 4095 * 255))


def test_floats_from_0_to_1(tmp_path):
    path = tmp_path / "float.tif"
    Image.fromarray(RAMP.astype(np.float32)).save(path)
    assert np.array_equal(gray(path), BYTES)


@pytest.mark.parametrize("values", [RAMP * 255, RAMP - 0.5, np.where(RAMP > 0.5, np.nan, 0)])
def test_floats_of_another_range_are_refused(tmp_path, values):
    path = tmp_path / "float.tif"
    Image.fromarray(values.astype(np.float32)).save(path)
    with pytest.raises(InputError, match=r"float\.tif: float pixels must be from 0 to 1, got"):
        open_image(path)


@pytest.mark.parametrize(("dtype", "fmt"), [("<i4", 2), ("<u4", 1), ("<i2", 2)])
def test_integers_without_a_known_white_are_refused(tmp_path, dtype, fmt):
    array = (RAMP * 30000).astype(dtype)
    path = tiff(tmp_path / "counts.tif", array, bits=8 * array.itemsize, fmt=fmt)
    for read in (check_image, open_image):
        with pytest.raises(InputError, match="whose white is not known"):
            read(path)


def png_16(path, array, colour):
    """Write a 16-bit PNG of several channels, which Pillow cannot write."""
    import zlib

    height, width, channels = array.shape
    rows = np.zeros((height, 1 + 2 * channels * width), np.uint8)
    rows[:, 1:] = np.frombuffer(array.astype(">u2").tobytes(), np.uint8).reshape(height, -1)

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows.tobytes())) + chunk(b"IEND", b"")
    )  # fmt: skip
    return path


@pytest.mark.parametrize(("channels", "colour"), [(3, 2), (4, 6), (2, 4)])
def test_sixteen_bits_in_several_channels(tmp_path, channels, colour):
    deep = np.repeat(np.rint(RAMP * 65535)[..., None], channels, axis=2)
    deep[..., 0] = deep[..., 0][::-1]
    path = png_16(tmp_path / "deep.png", deep, colour)
    seen = np.asarray(open_image(path)).astype(int)
    expected = deep[..., [0, 0, 0]] if channels == 2 else deep[..., :3]
    assert np.abs(seen - expected / 257).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_every_orientation_is_turned_upright(tmp_path, orientation, suffix):
    if suffix == "webp" and not features.check("webp"):
        pytest.skip("no WebP in this Pillow")
    upright = Image.fromarray(BYTES).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    # The file's pixels are those that the orientation turns upright: its inverse.
    back = {6: 8, 8: 6}.get(orientation, orientation)
    turned = upright.copy()
    turned.getexif()[0x0112] = back
    turned = ImageOps.exif_transpose(turned)
    path = tmp_path / f"turned.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    turned.save(path, exif=exif, **({"quality": 100} if suffix == "jpg" else options))
    seen = np.asarray(open_image(path)).astype(int)
    assert seen.shape == (48, 64, 3)
    assert np.abs(seen - np.asarray(upright)).max() <= (3 if suffix == "jpg" else 0)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b""])
def test_damaged_exif_data_do_not_make_the_pixels_unreadable(tmp_path, exif):
    path = tmp_path / "photo.jpg"
    Image.fromarray(BYTES).save(path, quality=100, exif=exif)
    assert np.abs(gray(path).astype(int) - BYTES).max() <= 3


def test_orientation_of_sixteen_bits(tmp_path):
    deep = Image.fromarray(np.rint(RAMP * 65535).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 3
    deep.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "deep.png", exif=exif)
    assert np.array_equal(gray(tmp_path / "deep.png"), BYTES)


def test_the_first_frame_or_page_is_taken(tmp_path):
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue", "lime")]
    for name in ("moving.gif", "pages.tif", "moving.webp", "moving.png"):
        options = {"lossless": True} if name.endswith("webp") else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        assert open_image(tmp_path / name).getpixel((3, 3)) == (255, 0, 0)


def test_palette_with_transparency_and_other_modes(tmp_path):
    colours = Image.new("RGB", (8, 8), (200, 40, 90))
    colours.convert("P").save(tmp_path / "p.png", transparency=0)
    colours.convert("CMYK").save(tmp_path / "c.jpg", quality=100)
    colours.convert("LA").save(tmp_path / "la.png")
    colours.convert("1").save(tmp_path / "1.tif")
    assert (
        np.abs(np.array(open_image(tmp_path / "p.png").getpixel((4, 4))) - (200, 40, 90)).max() < 30
    )
    assert (
        np.abs(np.array(open_image(tmp_path / "c.jpg").getpixel((4, 4))) - (200, 40, 90)).max() < 4
    )
    assert open_image(tmp_path / "la.png").getpixel((0, 0))[0] == colours.convert("L").getpixel(
        (0, 0)
    )
    assert set(np.unique(np.asarray(open_image(tmp_path / "1.tif")))) <= {0, 255}


def test_a_decompression_bomb_is_one_line(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    Image.new("1", (3000, 3000)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    for read in (check_image, open_image):
        with pytest.raises(InputError, match=r"bomb\.png is too large: .*9000000.*; shrink it"):
            read(path)


def test_no_other_program_is_run_and_no_video_is_an_image(tmp_path):
    path = tmp_path / "page.jpg"
    Image.new("RGB", (8, 8)).save(path, format="EPS")
    with pytest.raises(InputError, match=r"cannot read image .*page\.jpg"):
        check_image(path)
    assert not {"EPS", "MPEG", "HDF5", "GRIB", "BUFR", "WMF"} & set(image_formats())
    assert not {".eps", ".ps", ".mpg", ".h5", ".pdf", ".txt", ".npy"} & image_suffixes()
    assert {
        ".jfif",
        ".jpe",
        ".jp2",
        ".jpeg",
        ".jpg",
        ".png",
        ".tif",
        ".webp",
        ".mpo",
    } <= image_suffixes()


FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP")


def mutants(count, seed=0):
    """Yield damaged files: cut, with flipped bits, or with changed bytes in the header."""
    rng = random.Random(seed)
    exif = Image.Exif()
    exif[0x0112] = 6
    wholes = []
    for kind in FORMATS:
        for picture in (Image.fromarray(BYTES), Image.fromarray(BYTES).convert("RGB").quantize(16)):
            file = io.BytesIO()
            shown = picture.convert("RGB") if kind in ("JPEG", "WEBP") else picture
            shown.save(file, format=kind, **({"exif": exif} if kind in ("PNG", "JPEG") else {}))
            wholes.append(file.getvalue())
    for number in range(count):
        data = bytearray(wholes[number % len(wholes)])
        match rng.randrange(4):
            case 0:
                del data[rng.randrange(len(data)) :]
            case 1:
                for _ in range(rng.choice((1, 4, 32))):
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 2:
                for _ in range(rng.choice((1, 3))):
                    at = rng.randrange(min(120, len(data)))
                    data[at] = rng.choice((0, 1, 127, 128, 255))
            case 3:
                at = rng.randrange(min(120, len(data)))
                data[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4)))
        yield bytes(data)


def one_image(path, crop=random_crop):
    shape = InputFormat(image_size=16, mean=(0, 0, 0), std=(1, 1, 1))
    return ImageSet(images=[path], labels=[0], input_format=shape, crop=crop, mirror=True)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 3)])
@pytest.mark.parametrize("crop", [random_crop, centre_crop])
def test_the_smallest_and_the_longest_images(tmp_path, size, crop):
    path = tmp_path / "small.png"
    Image.new("RGB", size, (255, 255, 255)).save(path)
    tensor, _ = one_image(path, crop)[0]
    assert (tensor == 1).all()


@pytest.mark.timeout(20)
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="not a regular file"):
        open_image(tmp_path / "pipe.png")


def test_an_image_without_pixels(tmp_path):
    path = tmp_path / "empty.bmp"
    Image.new("L", (4, 4)).save(path)
    path.write_bytes(path.read_bytes()[:18] + bytes(8) + path.read_bytes()[26:])
    with pytest.raises(InputError, match=r"cannot read image .*empty\.bmp"):
        open_image(path)


def test_a_damaged_file_gives_pixels_or_one_line(tmp_path):
    path = tmp_path / "damaged.jpg"
    refusals = 0
    for data in mutants(300):
        path.write_bytes(data)
        try:
            tensor, _ = one_image(path)[0]
            assert tensor.shape == (3, 16, 16)
        except InputError as error:
            refusals += 1
            assert "damaged.jpg" in str(error)
            assert "\n" not in str(error)
    assert 50 < refusals < 250
