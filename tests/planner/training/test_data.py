"""Real digits, real files on disk, torchvision as the second implementation of the transforms."""

from __future__ import annotations

import hashlib
import pickle
import random
import socket

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets
from torchvision.transforms import v2

from planner.training.crops import centre, random_crop
from planner.training.data import load_data
from planner.training.image_set import loader, whole
from profiler.errors import InputError, UsageError

SHAPE = {"image_size": 32, "mean": (0.5, 0.4, 0.3), "std": (0.5, 0.25, 0.2)}


def paint(path, size=(40, 30), seed=0):
    """A smooth picture without symmetry, so that crops and mirrors show."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (4, 5, 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse.resize(size, Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def flat(tmp_path):
    for c, name in enumerate(["cat", "dog", "emu"]):
        for i in range(10):
            paint(tmp_path / "pets" / name / f"{i}.png", seed=10 * c + i)
    return tmp_path / "pets"


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# ---- digits


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", **SHAPE)


def test_digits_are_all_there_and_split_within_classes(digits):
    assert (len(digits.train), len(digits.held_out)) == (1438, 359)
    assert digits.num_classes == 10
    assert digits.class_names == tuple("0123456789")
    counts = np.bincount(load_digits().target)
    assert list(np.bincount(digits.held_out.labels)) == [round(0.2 * n) for n in counts]
    together = sorted(image.tobytes() for image in [*digits.train.images, *digits.held_out.images])
    everything = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    assert together == sorted(image.tobytes() for image in everything)


def test_digits_split_depends_on_the_seed_alone(digits):
    again, other = load_data("digits", **SHAPE), load_data("digits", **SHAPE, seed=1)
    assert again.source == digits.source
    assert again.held_out.labels == digits.held_out.labels
    assert np.array_equal(again.train.images, digits.train.images)
    assert other.held_out.labels != digits.held_out.labels
    assert other.source.fingerprint == digits.source.fingerprint


def test_a_digit_is_its_pixels_enlarged_and_normalised(digits):
    image, label = digits.train[7]
    assert image.shape == (3, 32, 32)
    assert image.dtype == torch.float32
    assert isinstance(label, int)
    pixels = torch.from_numpy(digits.train.images[7])[None].expand(3, -1, -1)
    big = v2.functional.resize(pixels, [32, 32], antialias=True)
    expected = v2.functional.normalize(big.float() / 255, SHAPE["mean"], SHAPE["std"])
    # torch and Pillow round to bytes differently: one level of 255, over the smallest std
    assert (image - expected).abs().max() < 1.5 / 255 / 0.2


def test_digits_are_never_mirrored_or_cropped(digits):
    plain = digits.train[3][0]
    assert all(torch.equal(digits.train[3, draw][0], plain) for draw in range(20))


# ---- the transforms against torchvision


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (255, 255)])
def test_centre_is_resize_255_and_center_crop_224(tmp_path, size):
    with Image.open(paint(tmp_path / "p.png", size)) as opened:
        picture = opened.convert("RGB")
    box = centre(*size, random.Random(0))
    ours = picture.resize((224, 224), Image.Resampling.BILINEAR, box=box)
    theirs = v2.Compose([v2.Resize(255), v2.CenterCrop(224)])(picture)
    difference = np.abs(np.asarray(ours, float) - np.asarray(theirs, float))
    # resizing then cropping at whole pixels shifts by half a pixel at most
    assert difference.mean() < 1.5


@pytest.mark.parametrize("size", [(640, 480), (100, 100), (50, 400), (400, 50)])
def test_random_crop_keeps_to_its_ranges(size):
    width, height = size
    for draw in range(200):
        left, top, right, bottom = random_crop(width, height, random.Random(draw))
        assert 0 <= left < right <= width + 1e-9
        assert 0 <= top < bottom <= height + 1e-9
        assert 3 / 4 - 1e-9 <= (right - left) / (bottom - top) <= 4 / 3 + 1e-9
        area = (right - left) * (bottom - top) / (width * height)
        assert area >= 0.8 - 1e-9 or max(size) > 2 * min(size)


def test_random_crop_has_torchvisions_distribution():
    torch.manual_seed(0)
    picture = torch.zeros(3, 480, 640)
    theirs = [
        v2.RandomResizedCrop.make_params(v2.RandomResizedCrop(8, scale=(0.8, 1.0)), [picture])
        for _ in range(2000)
    ]
    ours = [random_crop(640, 480, random.Random(draw)) for draw in range(2000)]
    widths = [right - left for left, _, right, _ in ours]
    tops = [top for _, top, _, _ in ours]
    assert np.mean(widths) == pytest.approx(np.mean([p["width"] for p in theirs]), rel=0.01)
    assert np.std(widths) == pytest.approx(np.std([p["width"] for p in theirs]), rel=0.06)
    assert np.mean(tops) == pytest.approx(np.mean([p["top"] for p in theirs]), rel=0.08)


def test_training_pictures_are_mirrored_half_of_the_time(flat):
    train = load_data(str(flat), **SHAPE).train
    uncropped = type(train)(
        images=train.images, labels=train.labels, frame=whole, mirror=True, **SHAPE
    )
    plain = type(train)(
        images=train.images, labels=train.labels, frame=whole, mirror=False, **SHAPE
    )[0][0]
    mirrored = 0
    for draw in range(400):
        image = uncropped[0, draw][0]
        assert torch.equal(image, plain) or torch.equal(image, plain.flip(2))
        mirrored += not torch.equal(image, plain)
    assert 160 < mirrored < 240  # four standard deviations


# ---- batches


def drain(batches):
    return [(x.clone(), y.clone()) for x, y in batches]


def equal(a, b):
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True))


def test_batches_depend_on_seed_and_epoch_alone(flat):
    train = load_data(str(flat), **SHAPE).train
    options = {"batch_size": 7, "shuffle": True, "drop_last": False}
    first = loader(train, seed=3, **options)
    epochs = [drain(first), drain(first)]
    torch.manual_seed(99)
    random.seed(99)
    again = loader(train, seed=3, **options)
    assert equal(drain(again), epochs[0])
    assert equal(drain(again), epochs[1])
    assert equal(drain(loader(train, seed=3, epoch=1, **options)), epochs[1])
    assert not equal(epochs[0], epochs[1])
    assert not equal(drain(loader(train, seed=4, **options)), epochs[0])


def test_batches_leave_the_global_generators_alone(flat):
    train = load_data(str(flat), **SHAPE).train
    before = torch.get_rng_state(), random.getstate()
    drain(loader(train, batch_size=4, shuffle=True, seed=0, drop_last=False))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_an_epoch_visits_each_image_once(digits):
    part = digits.held_out.sample(50, seed=0)
    batches = drain(loader(part, batch_size=16, shuffle=True, seed=0, drop_last=False))
    assert [len(y) for _, y in batches] == [16, 16, 16, 2]
    assert sorted(torch.cat([y for _, y in batches]).tolist()) == sorted(part.labels)
    x, y = batches[0]
    assert x.shape == (16, 3, 32, 32)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert len(drain(loader(part, batch_size=16, shuffle=True, seed=0, drop_last=True))) == 3


def test_unshuffled_batches_are_in_order(digits):
    part = digits.held_out.select(range(10))
    (batch,) = drain(loader(part, batch_size=10, shuffle=False, seed=5, drop_last=False))
    assert batch[1].tolist() == part.labels


def test_worker_processes_give_the_same_batches(flat):
    train = load_data(str(flat), **SHAPE).train
    options = {"batch_size": 5, "shuffle": True, "seed": 1, "drop_last": False}
    assert equal(drain(loader(train, **options)), drain(loader(train, num_workers=1, **options)))


def test_impossible_batches(digits):
    part = digits.held_out.sample(5, seed=0)
    with pytest.raises(UsageError, match="more than the 5 images"):
        loader(part, batch_size=6, shuffle=True, seed=0, drop_last=True)
    with pytest.raises(UsageError, match="positive"):
        loader(part, batch_size=0, shuffle=True, seed=0, drop_last=False)


# ---- folders


def test_flat_folder_is_split_within_classes(flat):
    (flat / "cat" / "notes.txt").write_text("not an image")
    (flat / "README").write_text("nor this")
    (flat / ".hidden").mkdir()
    data = load_data(str(flat), **SHAPE)
    assert data.class_names == ("cat", "dog", "emu")
    assert (len(data.train), len(data.held_out)) == (24, 6)
    assert list(np.bincount(data.held_out.labels)) == [2, 2, 2]
    assert not set(data.train.images) & set(data.held_out.images)
    assert all(
        path.parent.name == data.class_names[label]
        for path, label in zip(data.train.images, data.train.labels, strict=True)
    )
    assert data.source.skipped_files == 2
    assert "2 other files left out" in str(data.source)
    assert load_data(str(flat), **SHAPE).train.images == data.train.images


def test_files_and_labels_agree_with_torchvisions_image_folder(flat):
    data = load_data(str(flat), **SHAPE)
    theirs = sorted(datasets.ImageFolder(flat).samples)
    ours = [
        (str(path), label)
        for part in (data.train, data.held_out)
        for path, label in zip(part.images, part.labels, strict=True)
    ]
    assert sorted(ours) == theirs


@pytest.mark.parametrize("held_out", ["val", "valid", "test"])
def test_folder_with_its_own_parts(tmp_path, held_out):
    for name in ("a", "b"):
        for i in range(3):
            paint(tmp_path / "train" / name / f"{i}.JPG", seed=i)
        paint(tmp_path / held_out / name / "deeper" / "x.png")
    data = load_data(str(tmp_path), **SHAPE)
    assert (len(data.train), len(data.held_out)) == (6, 2)
    assert data.held_out.labels == [0, 1]


def test_train_folder_alone_is_split(tmp_path):
    for name in ("a", "b"):
        for i in range(5):
            paint(tmp_path / "train" / name / f"{i}.png", seed=i)
    data = load_data(str(tmp_path), **SHAPE)
    assert (len(data.train), len(data.held_out)) == (8, 2)


def test_trains_can_be_a_class(tmp_path):
    for name in ("car", "train"):
        for i in range(5):
            paint(tmp_path / name / f"{i}.png", seed=i)
    assert load_data(str(tmp_path), **SHAPE).class_names == ("car", "train")


def test_fingerprint_follows_the_files_and_not_the_place(flat, tmp_path):
    one = load_data(str(flat), **SHAPE).source.fingerprint
    moved = flat.rename(tmp_path / "moved")
    assert load_data(str(moved), **SHAPE).source.fingerprint == one
    paint(moved / "cat" / "new.png")
    assert load_data(str(moved), **SHAPE).source.fingerprint != one


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_mode_becomes_three_channels(flat, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    path = flat / "cat" / f"odd.{suffix}"
    if mode == "I;16":
        picture = Image.fromarray(np.full((9, 9), 300, dtype=np.uint16))
    else:
        with Image.open(flat / "cat" / "0.png") as colours:
            picture = colours.convert(mode)
    picture.save(path, **({"transparency": b"\x00\x80"} if mode == "P" else {}))
    data = load_data(str(flat), **SHAPE)
    part = data.train if path in data.train.images else data.held_out
    image, _ = part[list(part.images).index(path)]
    assert image.shape == (3, 32, 32)
    assert torch.isfinite(image).all()


# ---- bad folders


def refused(spec, words, **options):
    with pytest.raises(InputError, match=words) as caught:
        load_data(str(spec), **{**SHAPE, **options})
    assert "\n" not in str(caught.value)


def test_no_such_folder(tmp_path):
    refused(tmp_path / "nowhere", "does not exist; give a folder .* digits, cifar100, dtd")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "is a file")


def test_folder_without_classes(tmp_path):
    refused(tmp_path, "no class folders")
    paint(tmp_path / "loose.png")
    refused(tmp_path, "no class folders")
    paint(tmp_path / "cat" / "1.png")
    refused(tmp_path, "only one class \\('cat'\\)")


def test_empty_class(flat):
    (flat / "fox").mkdir()
    refused(flat, "fox has no images")


def test_class_with_one_image(flat):
    paint(flat / "fox" / "1.png")
    refused(flat, "'fox' has one image")


def test_held_out_class_that_is_not_trained(tmp_path):
    for part, names in (("train", "ab"), ("val", "bc")):
        for name in names:
            paint(tmp_path / part / name / "1.png")
    refused(tmp_path, "has class 'c'")


def test_held_out_folder_without_images(tmp_path):
    for name in "ab":
        paint(tmp_path / "train" / name / "1.png")
    (tmp_path / "val").mkdir()
    refused(tmp_path, "no images in .*val")


@pytest.mark.parametrize("content", [b"", b"this is text", b"\x89PNG\r\n\x1a\n"])
def test_file_that_is_no_image_is_named(flat, content):
    (flat / "dog" / "broken.jpg").write_bytes(content)
    refused(flat, r"cannot read image .*broken\.jpg")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_image_is_named_when_it_is_used(flat, suffix):
    path = paint(flat / "dog" / f"cut.{suffix}", size=(400, 300))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    data = load_data(str(flat), **SHAPE)
    with pytest.raises(InputError, match=rf"cannot read image .*cut\.{suffix}"):
        for part in (data.train, data.held_out):
            drain(loader(part, batch_size=4, shuffle=False, seed=0, drop_last=False))


def test_nonsense_shapes():
    with pytest.raises(UsageError, match="image_size"):
        load_data("digits", **{**SHAPE, "image_size": 0})
    with pytest.raises(UsageError, match="3 channels"):
        load_data("digits", **{**SHAPE, "mean": (0.5,)})
    with pytest.raises(UsageError, match="std must be positive"):
        load_data("digits", **{**SHAPE, "std": (0.5, 0.5, 0.0)})


# ---- downloads


@pytest.mark.parametrize("name", ["cifar100", "dtd"])
def test_download_that_is_not_possible(name, tmp_path, offline, capsys):
    refused(name, f"{name} is not in .* cannot be downloaded .*no network", data_root=tmp_path)
    assert capsys.readouterr().out == ""
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("name", ["cifar100", "dtd"])
def test_root_that_is_a_file(name, tmp_path, offline):
    (tmp_path / "root").write_text("x")
    refused(name, "is not in", data_root=tmp_path / "root")


def test_cifar100_from_its_own_files(tmp_path, monkeypatch):
    """A tiny archive in CIFAR's real layout; only the checksums are those of the tiny one."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    rng = np.random.default_rng(0)
    pixels = {
        n: rng.integers(0, 255, (k, 3072), dtype=np.uint8) for n, k in (("train", 6), ("test", 4))
    }
    contents = {n: {"data": p, "fine_labels": [0, 1] * (len(p) // 2)} for n, p in pixels.items()}
    contents["meta"] = {"fine_label_names": ["apple", "whale"]}
    sums = {}
    for name, content in contents.items():
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        sums[name] = hashlib.md5(data).hexdigest()
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [["test", sums["test"]]])
    meta = {**datasets.CIFAR100.meta, "md5": sums["meta"]}
    monkeypatch.setattr(datasets.CIFAR100, "meta", meta)

    data = load_data("cifar100", data_root=tmp_path, **SHAPE)
    assert data.class_names == ("apple", "whale")
    assert (len(data.train), len(data.held_out)) == (6, 4)
    assert (data.train.mirror, data.held_out.mirror) == (True, False)
    image, label = data.held_out[3]
    raw = torch.from_numpy(pixels["test"][3].reshape(3, 32, 32).astype(np.float32)) / 255
    assert torch.allclose(
        image, v2.functional.normalize(raw, SHAPE["mean"], SHAPE["std"]), atol=1e-6
    )
    assert label == 1


def dtd(root):
    base = root / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for split in ("train", "val", "test"):
        lines = []
        for name in ("banded", "woven"):
            paint(base / "images" / name / f"{name}_{split}.jpg", size=(60, 50))
            lines.append(f"{name}/{name}_{split}.jpg\n")
        (base / "labels" / f"{split}1.txt").write_text("".join(lines))
    return base


def test_dtd_trains_on_train_and_val(tmp_path, offline):
    dtd(tmp_path)
    data = load_data("dtd", data_root=tmp_path, **SHAPE)
    assert data.class_names == ("banded", "woven")
    assert [p.name for p in data.train.images] == [
        "banded_train.jpg", "woven_train.jpg", "banded_val.jpg", "woven_val.jpg"
    ]  # fmt: skip
    assert data.train.labels == [0, 1, 0, 1]
    assert [p.name for p in data.held_out.images] == ["banded_test.jpg", "woven_test.jpg"]
    assert data.held_out[1][0].shape == (3, 32, 32)


def test_dtd_with_a_missing_file(tmp_path, offline):
    base = dtd(tmp_path)
    (base / "images" / "woven" / "woven_val.jpg").unlink()
    refused("dtd", r"woven_val\.jpg", data_root=tmp_path)
