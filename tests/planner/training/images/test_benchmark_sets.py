"""VTAB-1k and FGVC from archives of the same form as those of the benchmark."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pictures import SHAPE
from PIL import Image

from planner.recommendation.data_facts import data_facts
from planner.training.images.load import load_data
from planner.training.images.named.fgvc import FGVC_SETS
from planner.training.images.named.vtab import VTAB_TASKS
from profiler.errors import InputError, UnknownNameError


def draw(path: Path, colour: tuple[int, int, int] = (200, 30, 30)) -> None:
    """An image of 12 x 8 pixels whose left half is white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (12, 8), colour)
    image.paste((255, 255, 255), (0, 0, 6, 8))
    image.save(path)


def vtab_task(root: Path, task: str, *, classes: int) -> None:
    """Write a task with one image of each class in train800 and test, and one in val200."""
    lines: dict[str, list[str]] = {"train800": [], "val200": [], "test": []}
    for part, count in (("train800", classes), ("val200", 1), ("test", classes)):
        for label in range(count):
            name = f"images/{part[:5]}/{label:06d}.png"
            place = root / task / name
            if label == 0:
                draw(place)
            else:
                os.link(root / task / f"images/{part[:5]}/000000.png", place)
            lines[part].append(f"{name} {label}")
    for part, text in lines.items():
        (root / task / f"{part}.txt").write_text("\n".join(text) + "\n")


@pytest.mark.parametrize("task", VTAB_TASKS)
def test_a_task_of_vtab(tmp_path: Path, task: str) -> None:
    classes = VTAB_TASKS[task].num_classes
    vtab_task(tmp_path / "vtab-1k", task, classes=classes)
    data = load_data(f"vtab:{task}", **SHAPE, data_root=tmp_path)
    assert (len(data.train), len(data.selection), len(data.test)) == (classes, 1, classes)
    assert data.num_classes == classes
    assert data_facts(f"vtab:{task}", image_size=32, is_used=False).num_classes == classes
    for part in (data.train, data.test):
        assert not part.mirror
        assert part.crop(12, 8, None) == (0, 0, 12, 8)
    assert list(data.train.labels) == list(range(classes))
    assert data.source_of_whole().train_images == len(data.training_whole()) == classes
    elsewhere = load_data(f"vtab:{task}:{tmp_path / 'vtab-1k'}", **SHAPE)
    assert elsewhere.source.fingerprint == data.source.fingerprint


def test_there_are_19_tasks_of_three_groups() -> None:
    assert len(VTAB_TASKS) == 19
    assert sum(size.num_classes for size in VTAB_TASKS.values()) == 940
    assert {size.train_images for size in VTAB_TASKS.values()} == {800}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("images/a.png ten\n", "line 1: expected an image and a label from 0 to 9"),
        ("images/a.png 10\n", "line 1: expected an image and a label from 0 to 9"),
        ("../a.png 1\n", "outside of the folder of images"),
        ("/etc/passwd 1\n", "outside of the folder of images"),
        ("", "is empty"),
    ],
)
def test_damaged_lists(tmp_path: Path, text: str, message: str) -> None:
    vtab_task(tmp_path, "svhn", classes=10)
    (tmp_path / "svhn" / "test.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        load_data(f"vtab:svhn:{tmp_path}", **SHAPE)


def test_names_of_tasks_and_sets(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="task of VTAB-1k 'cifar10'"):
        load_data("vtab:cifar10", **SHAPE)
    with pytest.raises(UnknownNameError, match="set of FGVC"):
        load_data("fgvc:birds", **SHAPE)
    with pytest.raises(InputError, match=r"train800.txt.*docs/data.md"):
        load_data("vtab:cifar", **SHAPE, data_root=tmp_path)


def fgvc_set(root: Path, name: str) -> Path:
    """Write a set of one image for each class and part; the image's folder names the class."""
    chosen = FGVC_SETS[name]
    folder = root / chosen.folder
    drawn = folder / chosen.images / "drawn.png"
    draw(drawn)
    for part in ("train", "val", "test"):
        split = {}
        for number in range(1, chosen.size.num_classes + 1):
            place = {
                "cub": f"{number:03d}.Bird_{number}/{part}.png",
                "dogs": f"n{number:05d}-Dog_{number}/{part}.png",
                "nabirds": f"{number:04d}/{part}.png",
            }.get(name, f"jpg/{part}_{number}.png")
            path = folder / chosen.images / place
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(drawn, path)
            split[place] = str(number) if name == "nabirds" else number
        (folder / f"{part}.json").write_text(json.dumps(split))
    return folder


@pytest.mark.parametrize("name", FGVC_SETS)
def test_a_set_of_fgvc(tmp_path: Path, name: str) -> None:
    fgvc_set(tmp_path / "fgvc", name)
    data = load_data(f"fgvc:{name}", **SHAPE, data_root=tmp_path)
    size = FGVC_SETS[name].size
    count = size.num_classes
    assert (len(data.train), len(data.selection), len(data.test)) == (count, count, count)
    assert sorted(data.test.labels) == list(range(count))
    assert data.source_of_whole().train_images == len(data.training_whole()) == count
    facts = data_facts(f"fgvc:{name}", image_size=32, is_used=False)
    assert facts.num_classes == data.num_classes == count
    expected = {"cub": "Bird_7", "dogs": "Dog_7"}.get(name, "class 6")
    assert data.class_names[6] == expected


def test_the_selection_part_is_taken_out_where_there_is_none(tmp_path: Path) -> None:
    folder = fgvc_set(tmp_path, "flowers")
    train = json.loads((folder / "train.json").read_text())
    val = json.loads((folder / "val.json").read_text())
    (folder / "train.json").write_text(json.dumps(train | val))
    (folder / "val.json").unlink()
    data = load_data(f"fgvc:flowers:{tmp_path}", **SHAPE)
    assert len(data.train) + len(data.selection) == 204
    assert len(data.selection) > 0


def test_damaged_splits(tmp_path: Path) -> None:
    folder = fgvc_set(tmp_path, "flowers")
    good = json.loads((folder / "train.json").read_text())

    def refused(message: str, name: str, content: str) -> None:
        before = (folder / name).read_text()
        (folder / name).write_text(content)
        with pytest.raises(InputError, match=message) as error:
            load_data(f"fgvc:flowers:{tmp_path}", **SHAPE)
        assert "\n" not in str(error.value)
        (folder / name).write_text(before)

    refused("has 1 classes, flowers has 102", "train.json", json.dumps({"jpg/train_1.png": 1}))
    refused("as an object of images and class ids", "train.json", "[1, 2]")
    refused("is empty", "test.json", "{}")
    refused("has the class 103, which train.json has not", "test.json", '{"jpg/test_1.png": 103}')
    refused("outside of the folder", "train.json", json.dumps(
        {(name if i else "../a.png"): each for i, (name, each) in enumerate(good.items())}
    ))  # fmt: skip
