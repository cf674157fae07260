"""Folders of class folders on a real disk, with torchvision's ImageFolder as second opinion."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from pictures import SHAPE, drain, paint, refused
from PIL import Image
from torchvision import datasets

from planner.training.images.batches import batch_loader
from planner.training.images.load import load_data
from profiler.errors import InputError


def test_flat_folder_is_split_within_classes(flat):
    (flat / "cat" / "notes.txt").write_text("not an image")
    (flat / "README").write_text("nor this")
    (flat / ".hidden").mkdir()
    data = load_data(str(flat), **SHAPE)
    assert data.class_names == ("cat", "dog", "emu")
    assert (len(data.train), len(data.selection), len(data.test)) == (21, 3, 6)
    assert list(np.bincount(data.test.labels)) == [2, 2, 2]
    assert list(np.bincount(data.selection.labels)) == [1, 1, 1]
    assert data.images_per_class == (7, 7, 7)
    assert len({*data.train.images, *data.selection.images, *data.test.images}) == 30
    assert all(
        path.parent.name == data.class_names[label]
        for path, label in zip(data.train.images, data.train.labels, strict=True)
    )
    assert data.source.skipped_files == 2
    assert data.source.skip_reasons == {".txt": 1, "outside the class folders": 1}
    assert "2 files skipped (1 outside the class folders, 1 .txt)" in str(data.source)
    assert load_data(str(flat), **SHAPE).train.images == data.train.images


def test_files_and_labels_agree_with_torchvisions_image_folder(flat):
    data = load_data(str(flat), **SHAPE)
    theirs = sorted(datasets.ImageFolder(flat).samples)
    ours = [
        (str(path), label)
        for part in (data.train, data.selection, data.test)
        for path, label in zip(part.images, part.labels, strict=True)
    ]
    assert sorted(ours) == theirs


def parts(root, *folders, classes=("a", "b"), count=3):
    for folder in folders:
        for name in classes:
            for i in range(count):
                paint(root / folder / name / f"{i}.png", seed=i)


@pytest.mark.parametrize(
    "held_out",
    [
        "val",
        "valid",
        "validation",
        "DEV",
        "test",
        "Eval",
        "Test_Set",
        "valset",
        "val2017",
        "test data",
    ],
)
def test_the_only_held_out_folder_is_the_test_part(tmp_path, held_out):
    for name in ("a", "b"):
        for i in range(3):
            paint(tmp_path / "Train" / name / f"{i}.JPG", seed=i)
        paint(tmp_path / held_out / name / "deeper" / "x.png")
    data = load_data(str(tmp_path), **SHAPE)
    assert data.class_names == ("a", "b")
    assert (len(data.train), len(data.selection), len(data.test)) == (4, 2, 2)
    assert data.test.labels == data.selection.labels == [0, 1]
    assert len(data.training_whole()) == 6


def test_folder_with_three_parts(tmp_path):
    parts(tmp_path, "training", "Validation", "testing")
    (tmp_path / "annotations").mkdir()
    data = load_data(str(tmp_path), **SHAPE)
    assert [{p.relative_to(tmp_path).parts[0] for p in part.images}
            for part in (data.train, data.selection, data.test)] == [
        {"training"}, {"Validation"}, {"testing"}
    ]  # fmt: skip
    source = data.source
    assert (source.train_images, source.selection_images, source.held_out_images) == (6, 6, 6)
    assert data.training_whole() is data.train
    assert not data.selection.mirror
    assert data.selection.crop is data.test.crop


def test_train_folder_alone_is_split(tmp_path):
    parts(tmp_path, "train", count=5)
    data = load_data(str(tmp_path), **SHAPE)
    assert (len(data.train), len(data.selection), len(data.test)) == (6, 2, 2)


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("train", "Training"), "Training and train in .* both name the train part"),
        (("train", "val", "dev"), "dev and val in .* both name the selection part"),
        (("train", "test", "eval"), "eval and test in .* both name the test part"),
        (("val", "test"), "no training part in .*, which has test, val"),
        (("train", "holdout"), "holdout in .* has class folders that train has"),
        (
            ("training_set", "dev", "holdout"),
            "holdout in .* has class folders that training_set has",
        ),
        (("seg_train", "seg_test"), "seg_train and seg_test in .* look like parts"),
        (("training_set", "training set 2"), "both name the train part"),
    ],
)
def test_parts_that_are_not_clear(tmp_path, folders, words):
    parts(tmp_path, *folders)
    refused(tmp_path, words)


def test_a_folder_without_the_classes_may_stand_beside_the_parts(tmp_path):
    parts(tmp_path, "Training_Set", "test_set")
    (tmp_path / "annotations" / "xml").mkdir(parents=True)
    (tmp_path / "annotations" / "xml" / "1.xml").touch()
    source = load_data(str(tmp_path), **SHAPE).source
    assert source.skip_reasons == {"outside the class folders": 1}


def test_a_copy_beside_all_three_parts_is_counted(tmp_path):
    parts(tmp_path, "train", "val", "test", "train_old")
    data = load_data(str(tmp_path), **SHAPE)
    assert (len(data.train), len(data.selection), len(data.test)) == (6, 6, 6)
    assert data.source.skip_reasons == {"outside the class folders": 6}


def test_parts_inside_classes_are_no_parts(tmp_path):
    for name in ("bullet train", "car"):
        parts(tmp_path / name, "left", "right")
    assert load_data(str(tmp_path), **SHAPE).class_names == ("bullet train", "car")


def test_a_nested_class_called_train(tmp_path):
    parts(tmp_path, "train")
    paint(tmp_path / "car" / "1.png")
    refused(tmp_path, "train in .* may be a part or a class, beside car")


def test_parts_without_classes(tmp_path):
    for part in ("Train", "Test"):
        for i in range(4):
            paint(tmp_path / part / f"{i}.png", seed=i)
    refused(tmp_path, "has the parts Test, Train, but no class folders")


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
    (part,) = [p for p in (data.train, data.selection, data.test) if path in p.images]
    image, _ = part[list(part.images).index(path)]
    assert image.shape == (3, 32, 32)
    assert torch.isfinite(image).all()


# ---- folders that are refused


def test_no_such_folder(tmp_path):
    refused(tmp_path / "nowhere", "does not exist; give a folder or digits, animals")
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


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_held_out_part_has_the_trained_classes(tmp_path, part):
    parts(tmp_path, "train", "val", "test")
    paint(tmp_path / part / "c" / "1.png")
    refused(tmp_path, f"{part} has class 'c'")
    paint(tmp_path / "train" / "c" / "1.png")
    paint(tmp_path / {"val": "test", "test": "val"}[part] / "c" / "1.png")
    assert load_data(str(tmp_path), **SHAPE).num_classes == 3
    shutil.rmtree(tmp_path / part / "c")
    refused(tmp_path, rf"{part} has no images of 1 of 3 classes \('c'\)")


def test_held_out_folder_without_images(tmp_path):
    parts(tmp_path, "train")
    (tmp_path / "val").mkdir()
    refused(tmp_path, "no images in .*val")


@pytest.mark.parametrize("content", [b"", b"this is text", b"\x89PNG\r\n\x1a\n"])
def test_file_that_is_no_image_is_named(flat, content):
    (flat / "dog" / "broken.jpg").write_bytes(content)
    refused(flat, r"cannot read image .*broken\.jpg")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_an_image_that_is_cut_later_is_named_when_it_is_used(flat, suffix):
    path = paint(flat / "dog" / f"cut.{suffix}", size=(400, 300))
    data = load_data(str(flat), **SHAPE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=rf"cannot read image .*cut\.{suffix}"):
        for part in (data.train, data.selection, data.test):
            drain(batch_loader(part, batch_size=4, shuffle=False, seed=0, drop_last=False))
