"""Copies of training images in the other parts."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pictures import SHAPE, paint

from planner.training.images import copies
from planner.training.images.copies import count_copies
from planner.training.images.load import load_data


@given(*[st.lists(st.binary(min_size=1, max_size=2), max_size=8)] * 3)
def test_the_copies_are_counted_by_content(train, selection, test):
    parts = [[np.frombuffer(b, np.uint8) for b in part] for part in (train, selection, test)]
    expected = sum(other in train for other in (*selection, *test))
    assert count_copies(parts[0], parts[1:]) == expected


def test_copies_of_files_are_counted_and_said(flat):
    assert load_data(str(flat), **SHAPE).source.copied_images == 0
    for i in range(10):
        shutil.copy(flat / "cat" / "0.png", flat / "cat" / f"copy{i}.png")
    data = load_data(str(flat), **SHAPE)
    same = (flat / "cat" / "0.png").read_bytes()
    assert any(path.read_bytes() == same for path in data.train.images)
    expected = sum(
        path.read_bytes() == same for path in (*data.selection.images, *data.test.images)
    )
    assert data.source.copied_images == expected > 0
    assert f"{expected} of the latter two are copies of training images" in str(data.source)


def test_a_training_on_the_selection_part_too_counts_the_copies_in_the_test_part(flat):
    for i in range(10):
        shutil.copy(flat / "cat" / "0.png", flat / "cat" / f"copy{i}.png")
    data = load_data(str(flat), **SHAPE)
    same = (flat / "cat" / "0.png").read_bytes()
    whole = data.source_of_whole()
    assert any(path.read_bytes() == same for path in data.training_whole().images)
    copied = sum(path.read_bytes() == same for path in data.test.images)
    assert whole.copied_images == copied
    assert (whole.train_images, whole.selection_images) == (len(data.training_whole()), None)
    alone = replace(data, test=data.selection).source_of_whole()
    assert alone.copied_images == len(data.selection), "each selection image is trained on"
    assert f"{len(data.selection)} of the latter are copies of training images" in str(alone)


def test_a_selection_part_of_its_own_is_not_trained_on(tmp_path):
    for seed, part in enumerate(("train", "val", "test")):
        for i, name in enumerate("ab"):
            paint(tmp_path / part / name / "1.png", seed=10 * seed + i)
    shutil.copy(tmp_path / "val" / "a" / "1.png", tmp_path / "test" / "b" / "2.png")
    data = load_data(str(tmp_path), **SHAPE)
    source = data.source_of_whole()
    assert (source.train_images, source.copied_images) == (2, 0)
    shutil.rmtree(tmp_path)
    assert data.source_of_whole().copied_images is None, "files that are gone are not compared"


def test_copies_between_the_parts_of_a_folder(tmp_path):
    for seed, part in enumerate(("train", "val", "test")):
        for i, name in enumerate("ab"):
            paint(tmp_path / part / name / "1.png", seed=10 * seed + i)
    shutil.copy(tmp_path / "train" / "a" / "1.png", tmp_path / "test" / "b" / "2.png")
    assert load_data(str(tmp_path), **SHAPE).source.copied_images == 1


def test_too_many_bytes_to_compare(flat, monkeypatch):
    monkeypatch.setattr(copies, "MOST_HASHED_BYTES", 100)
    shutil.copy(flat / "cat" / "1.png", flat / "cat" / "copy.png")
    sizes = [path.stat().st_size for path in flat.rglob("*.png")]
    assert len(set(sizes)) < len(sizes)
    source = load_data(str(flat), **SHAPE).source
    assert source.copied_images in (None, 0)
    images = sorted(flat.rglob("*.png"))
    assert count_copies(images, [images]) is None
    assert "copies" not in str(source)
