"""Named data sets: real digits, tiny archives in the real layouts, and no network."""

from __future__ import annotations

import hashlib
import pickle
import socket

import numpy as np
import pytest
import torch
from pictures import SHAPE, paint, refused
from sklearn.datasets import load_digits
from torchvision import datasets
from torchvision.transforms import v2

from planner.training.images.load import load_data
from profiler.errors import UsageError


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_digits_are_all_there_and_split_within_classes(digits):
    assert (len(digits.training_whole()), len(digits.test)) == (1438, 359)
    assert digits.num_classes == 10
    assert digits.class_names == tuple("0123456789")
    counts = np.bincount(load_digits().target)
    assert list(np.bincount(digits.test.labels)) == [round(0.2 * n) for n in counts]
    parts = (digits.train, digits.selection, digits.test)
    together = sorted(image.tobytes() for part in parts for image in part.images)
    everything = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    assert together == sorted(image.tobytes() for image in everything)


def test_digits_split_depends_on_the_seed_alone(digits):
    again, other = load_data("digits", **SHAPE), load_data("digits", **SHAPE, seed=1)
    assert again.source == digits.source
    assert again.test.labels == digits.test.labels
    assert again.selection_positions == digits.selection_positions != other.selection_positions
    assert np.array_equal(again.train.images, digits.train.images)
    assert other.test.labels != digits.test.labels
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
        pickled = pickle.dumps(content)
        (folder / name).write_bytes(pickled)
        sums[name] = hashlib.md5(pickled).hexdigest()
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [["test", sums["test"]]])
    meta = {**datasets.CIFAR100.meta, "md5": sums["meta"]}
    monkeypatch.setattr(datasets.CIFAR100, "meta", meta)

    data = load_data("cifar100", data_root=tmp_path, **SHAPE)
    assert data.class_names == ("apple", "whale")
    assert (len(data.train), len(data.selection), len(data.test)) == (4, 2, 4)
    assert [part.mirror for part in (data.train, data.selection, data.test)] == [True, False, False]
    whole = np.stack(data.training_whole().images).transpose(0, 3, 1, 2).reshape(6, 3072)
    assert np.array_equal(whole, pixels["train"])
    image, label = data.test[3]
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


def test_dtd_has_three_parts_of_its_own(tmp_path, offline):
    dtd(tmp_path)
    data = load_data("dtd", data_root=tmp_path, **SHAPE)
    assert data.class_names == ("banded", "woven")
    assert [p.name for p in data.train.images] == ["banded_train.jpg", "woven_train.jpg"]
    assert [p.name for p in data.selection.images] == ["banded_val.jpg", "woven_val.jpg"]
    # the paper trains on train and val
    assert data.training_whole().images == [*data.train.images, *data.selection.images]
    assert data.training_whole().labels == [0, 1, 0, 1]
    assert [p.name for p in data.test.images] == ["banded_test.jpg", "woven_test.jpg"]
    assert data.test[1][0].shape == (3, 32, 32)


def test_dtd_with_a_missing_file(tmp_path, offline):
    base = dtd(tmp_path)
    (base / "images" / "woven" / "woven_val.jpg").unlink()
    refused("dtd", r"woven_val\.jpg", data_root=tmp_path)
