"""Which files of a folder are images, and what is said about the others."""

from __future__ import annotations

import os
import shutil

import pytest
from pictures import SHAPE, paint, refused
from PIL import Image

from planner.training.images.image_set import DataSource
from planner.training.images.listing import describe_skipped
from planner.training.images.load import load_data

HIDDEN = (
    ".ipynb_checkpoints/1-checkpoint.png", ".thumbs/1.png", "@eaDir/1.png", "._1.png",
    "__MACOSX/1.png", "deeper/.git/objects/1.png", ".png",
)  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
def test_a_path_with_a_hidden_part_is_skipped_and_counted(flat, name):
    paint(flat / "cat" / "spare.png")
    plain = load_data(str(flat), **SHAPE)
    (flat / "cat" / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(flat / "cat" / "1.png", flat / "cat" / name)
    data = load_data(str(flat), **SHAPE)
    assert data.source.skip_reasons == {"hidden or system": 1}
    assert "1 file skipped (1 hidden or system)" in str(data.source)
    assert data.source.fingerprint == plain.source.fingerprint
    assert data.test.images == plain.test.images


def test_system_files_and_hidden_folders_beside_the_classes(flat):
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store"):
        (flat / name).write_text("x")
        (flat / "dog" / name).write_text("x")
    paint(flat / "__MACOSX" / "cat" / "._1.png")
    data = load_data(str(flat), **SHAPE)
    assert data.class_names == ("cat", "dog", "emu")
    assert data.source.skip_reasons == {"hidden or system": 7}


def test_every_suffix_of_pillow_counts_and_others_are_named(flat):
    for suffix, kind in (("jfif", "JPEG"), ("JPE", "JPEG"), ("jp2", "JPEG2000"), ("tga", "TGA")):
        with Image.open(flat / "cat" / "1.png") as opened:
            opened.convert("RGB").save(flat / "cat" / f"more.{suffix}", format=kind)
    shutil.copy(flat / "cat" / "1.png", flat / "cat" / "n02084071_1")
    for name in ("a.heic", "b.HEIC", "c.txt", "LICENSE"):
        (flat / "emu" / name).write_text("no image")
    data = load_data(str(flat), **SHAPE)
    assert sum(data.images_per_class) + len(data.selection) + len(data.test) == 35
    assert data.source.skip_reasons == {".heic": 2, ".txt": 1, "without a suffix": 1}
    assert str(data.source).endswith(", 4 files skipped (2 .heic, 1 without a suffix, 1 .txt)")


def test_a_class_of_other_files_only(flat):
    (flat / "fox").mkdir()
    (flat / "fox" / "1.heic").write_text("x")
    refused(flat, r"fox has no images \(1 .heic skipped\)")


def test_files_beside_the_parts_are_counted(tmp_path):
    for part in ("train", "test"):
        for name in "ab":
            for i in range(3):
                paint(tmp_path / part / name / f"{i}.png")
    (tmp_path / "README").write_text("x")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "all.json").write_text("{}")
    assert load_data(str(tmp_path), **SHAPE).source.skip_reasons == {"outside the class folders": 2}


# ---- links


def test_links_to_files_folders_and_nothing(flat, tmp_path):
    other = paint(tmp_path / "elsewhere" / "x.png")
    (flat / "cat" / "linked.png").symlink_to(other)
    (flat / "cat" / "twice.png").symlink_to(flat / "cat" / "1.png")
    (flat / "cat" / "gone.png").symlink_to(tmp_path / "nothing")
    (flat / "cat" / "self.png").symlink_to(flat / "cat" / "self.png")
    (flat / "cat" / "around").symlink_to(flat)
    os.mkfifo(flat / "cat" / "pipe.png")
    data = load_data(str(flat), **SHAPE)
    assert data.source.skip_reasons == {
        "second link to a file": 1, "not a regular file": 3, "link to a folder": 1
    }  # fmt: skip
    everything = [*data.train.images, *data.selection.images, *data.test.images]
    assert flat / "cat" / "linked.png" in everything
    assert len(everything) == 31


def test_a_class_folder_may_be_a_link(flat, tmp_path):
    shutil.move(flat / "emu", tmp_path / "big disk")
    (flat / "emu").symlink_to(tmp_path / "big disk")
    assert sum(load_data(str(flat), **SHAPE).images_per_class) == 21


@pytest.mark.parametrize("target", ["dog", ".", "..", "/"])
def test_a_class_folder_that_links_to_another_or_around(flat, target):
    (flat / "fox").symlink_to(flat / target)
    refused(flat, "fox is a link to")


def test_a_name_that_is_no_text(flat):
    try:
        shutil.copy(flat / "cat" / "1.png", os.path.join(os.fsencode(flat), b"cat", b"\xff.png"))
    except OSError:
        pytest.skip("this file system has no such names")
    assert sum(load_data(str(flat), **SHAPE).images_per_class) == 22


def test_the_reasons_that_a_sentence_lists():
    many = {f".{i}": i for i in range(1, 10)}
    assert describe_skipped(many).endswith("4 .4, 6 others")
    old = DataSource(name="x", train_images=8, held_out_images=2, fingerprint="", skipped_files=3)
    assert str(old) == "x: 8 training images, 2 for the test, 3 files skipped"
