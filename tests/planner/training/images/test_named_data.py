"""Named data sets: the installed ones as they are, the others from files of the same format."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from pictures import SHAPE, paint, refused
from torchvision import datasets

import planner.training.images.named.animals
from planner.training.images.load import load_data
from planner.training.images.named.array_pickle import read_array
from planner.training.images.registry import NAMED_DATA, find_named
from profiler.errors import InputError, UsageError

ROOT = Path(__file__).parents[4]


def test_the_registry_and_its_document_agree():
    table = [line for line in (ROOT / "docs" / "data.md").read_text().splitlines() if "| `" in line]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table]
    documented = [row for row in rows if len(row) == 3]
    named = [":".join(filter(None, (data.name, data.variant))) for data in NAMED_DATA.values()]
    assert documented == [
        [name, data.description, data.origin]
        for name, data in zip(named, NAMED_DATA.values(), strict=True)
    ]


def test_a_name_with_a_variant_is_no_folder():
    assert find_named("vww:~/coco") == (NAMED_DATA["vww"], "~/coco")
    assert find_named("digits") == (NAMED_DATA["digits"], "")
    assert find_named("digits:7") is None
    assert find_named("photos/") is None


# ---- animals


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of the same files, with few images, found in place of the real one."""
    folder = tmp_path / "animal_mnist" / "data" / "Animal_MNIST"
    folder.mkdir(parents=True)
    (tmp_path / "animal_mnist" / "__init__.py").write_text("raise SystemExit('imported')")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (100, 28, 28), dtype=np.uint8)
    labels = np.repeat(np.arange(10), 10)
    arrays = {"animal_data_version_3.gz": pixels, "animal_label_version_3.gz": labels}
    for name, array in arrays.items():
        (folder / name).write_bytes(gzip.compress(pickle.dumps(array)))
    monkeypatch.syspath_prepend(tmp_path)
    return folder, pixels, labels


def test_animals_from_the_files_of_the_package(package):
    _, pixels, labels = package
    data = load_data("animals", **SHAPE)
    assert (len(data.train), len(data.selection), len(data.test)) == (70, 10, 20)
    assert data.class_names[7] == "horse"
    assert [part.mirror for part in (data.train, data.selection, data.test)] == [True, False, False]
    seen = Counter(
        (image.tobytes(), label)
        for part in (data.train, data.selection, data.test)
        for image, label in zip(part.images, part.labels, strict=True)
    )
    assert seen == Counter((p.tobytes(), int(n)) for p, n in zip(pixels, labels, strict=True))
    assert data.train[0][0].shape == (3, 32, 32)


def test_the_real_animals():
    if find_spec("animal_mnist") is None:
        pytest.skip("the package animal-mnist is not installed")
    data = load_data("animals", **SHAPE)
    assert data.images_per_class == (720,) * 10
    assert (len(data.selection), len(data.test)) == (800, 2000)
    giraffes = [i for i, n in zip(data.test.images, data.test.labels, strict=True) if n == 6]
    cows = [i for i, n in zip(data.test.images, data.test.labels, strict=True) if n == 3]

    def tallness(images):
        boxes = [np.argwhere(image > 127) for image in images]
        return np.mean([np.ptp(box[:, 0]) / (1 + np.ptp(box[:, 1])) for box in boxes])

    assert tallness(giraffes) > 1.2
    assert tallness(cows) < 1


def test_animals_that_are_not_installed(monkeypatch):
    monkeypatch.setattr(planner.training.images.named.animals, "_PACKAGE", "no_such_animals")
    refused("animals", "package animal-mnist, which is not installed; run pip install --no-deps")


class Bomb:
    def __init__(self, call, *arguments):
        self.call = call, arguments

    def __reduce__(self):
        return self.call


BOMBS = {
    "system": Bomb(os.system, "touch exploded"),
    "getattr": Bomb(getattr, np.ndarray, "tofile"),
    "numpy": Bomb(np.load, "x.npy"),
    "objects": np.array([Bomb(os.system, "touch exploded")], dtype=object),
    "floats": np.zeros(3),
    "text": np.array(["a"]),
    "columns": np.asfortranarray(np.zeros((2, 3), np.uint8)),
    "list": [1, 2],
    "class": np.ndarray,
    "none": None,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_pickle_runs_nothing_and_holds_one_array(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("x.gz").write_bytes(gzip.compress(pickle.dumps(BOMBS[name])))
    with pytest.raises(InputError, match=r"cannot read x.gz as a pickled array of integers"):
        read_array(Path("x.gz"))
    assert not Path("exploded").exists()


@pytest.mark.parametrize("dtype", ["u1", "<i8", ">i2", "<u4"])
def test_a_pickled_array_is_read_as_numpy_reads_it(tmp_path, dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    for protocol in (3, 4):
        (tmp_path / "x.gz").write_bytes(gzip.compress(pickle.dumps(array, protocol)))
        assert np.array_equal(read_array(tmp_path / "x.gz"), array)


def test_damaged_pickles_are_one_line(tmp_path):
    whole = pickle.dumps(np.arange(6), protocol=4)
    rng = np.random.default_rng(0)
    path = tmp_path / "x.gz"
    for _ in range(300):
        data = bytearray(whole)
        if rng.random() < 0.3:
            del data[rng.integers(len(data)) :]
        else:
            data[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(gzip.compress(bytes(data)))
        try:
            assert read_array(path).dtype.kind in "iu"
        except InputError as error:
            assert "\n" not in str(error)
    path.write_bytes(b"no gzip")
    with pytest.raises(InputError, match="cannot read"):
        read_array(path)


@pytest.mark.parametrize(
    ("pixels", "labels", "words"),
    [
        (np.zeros((4, 28, 27), np.uint8), np.zeros(4, int), "expected images of 28 x 28 bytes"),
        (np.zeros((4, 28, 28), np.int64), np.zeros(4, int), "expected images of 28 x 28 bytes"),
        (np.zeros((4, 28, 28), np.uint8), np.zeros(5, int), "expected 4 integer labels"),
        (np.zeros((4, 28, 28), np.uint8), np.full(4, 10), "labels in .* must be from 0 to 9"),
        (np.zeros((4, 28, 28), np.uint8), np.full(4, -1), "labels in .* must be from 0 to 9"),
    ],
)
def test_animals_of_another_shape(package, pixels, labels, words):
    folder = package[0]
    for name, array in (("data", pixels), ("label", labels)):
        path = folder / f"animal_{name}_version_3.gz"
        path.write_bytes(gzip.compress(pickle.dumps(array)))
    refused("animals", words)


# ---- CIFAR-10-C


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Tiny archives in the layouts of CIFAR-10 and CIFAR-10-C; the checksums are the tiny one's."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    contents = {
        name: {"data": rng.integers(0, 255, (30, 3072), dtype=np.uint8), "labels": [0, 1, 2] * 10}
        for name in ("data_batch_1", "test_batch")
    }
    contents["batches.meta"] = {"label_names": [f"class {i}" for i in range(10)]}
    sums = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    kind = datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(kind, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums["batches.meta"]})
    corrupted = rng.integers(0, 255, (20, 32, 32, 3), dtype=np.uint8)
    (tmp_path / "CIFAR-10-C").mkdir()
    np.save(tmp_path / "CIFAR-10-C" / "fog.npy", corrupted)
    np.save(tmp_path / "CIFAR-10-C" / "labels.npy", np.array([3, 1, 4, 1] * 5, np.uint8))
    return tmp_path, corrupted


def test_cifar10_c_tests_on_one_severity(cifar):
    root, corrupted = cifar
    clean = load_data("cifar10", data_root=root, **SHAPE)
    assert (len(clean.train), len(clean.selection), len(clean.test)) == (27, 3, 30)
    for severity in (1, 3, 5):
        data = load_data(f"cifar10-c:fog:{severity}", data_root=root, **SHAPE)
        assert np.array_equal(data.test.images, corrupted[4 * severity - 4 : 4 * severity])
        assert data.test.labels == [3, 1, 4, 1]
        assert np.array_equal(data.train.images, clean.train.images)
        assert data.source.name == f"cifar10-c:fog:{severity}"
        assert data.source.fingerprint != clean.source.fingerprint
        assert data.class_names == clean.class_names


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("cifar10-c", "expected cifar10-c:CORRUPTION:SEVERITY"),
        ("cifar10-c:fog", "a severity from 1 to 5"),
        ("cifar10-c:fog:0", "a severity from 1 to 5"),
        ("cifar10-c:fog:6", "a severity from 1 to 5"),
        ("cifar10-c:smog:1", "unknown corruption 'smog'; did you mean fog"),
        ("cifar10-c:../x:1", "unknown corruption"),
    ],
)
def test_cifar10_c_that_is_asked_for_wrongly(cifar, spec, words):
    with pytest.raises(UsageError, match=words):
        load_data(spec, data_root=cifar[0], **SHAPE)


def objects():
    file = io.BytesIO()
    np.save(file, np.array([Bomb(os.system, "touch exploded")], dtype=object), allow_pickle=True)
    return file.getvalue()


def test_cifar10_c_with_missing_and_damaged_files(cifar, monkeypatch):
    root = cifar[0]
    monkeypatch.chdir(root)
    refused("cifar10-c:snow:1", r"snow\.npy does not exist; get CIFAR-10-C\.tar", data_root=root)
    file = root / "CIFAR-10-C" / "fog.npy"
    whole = file.read_bytes()
    for content in (b"", whole[:50], whole[:-9], b"PK\x03\x04", objects(), pickle.dumps(1)):
        file.write_bytes(content)
        refused("cifar10-c:fog:1", r"cannot read .*fog\.npy", data_root=root)
    np.save(file, np.uint8(3))
    refused("cifar10-c:fog:1", "it holds one number", data_root=root)
    np.save(file, np.zeros((19, 32, 32, 3), np.uint8))
    refused("cifar10-c:fog:1", "expected 19 integer labels", data_root=root)
    np.save(file.with_name("labels.npy"), np.zeros(19, np.uint8))
    refused("cifar10-c:fog:1", "as many images at each of 5 severities, got 19", data_root=root)
    assert not Path("exploded").exists()


# ---- Visual Wake Words


BOXES = (
    # box of a person, box of a dog, label: 1 if the person's is more than 0.5 % of 200 x 100
    ((0, 0, 10, 10), None, 0),  # exactly 0.5 %
    ((0, 0, 10, 10.01), None, 1),
    ((150, 50, 80, 90), (0, 0, 5, 5), 1),
    ((0, 0, 3, 3), (0, 0, 200, 100), 0),
    (None, (0, 0, 200, 100), 0),
    (None, None, 0),
)


def coco(root, ending="2017"):
    for part in ("train", "val"):
        images: list[object] = []
        annotations: list[object] = []
        for i, (person, dog, _) in enumerate(BOXES * 2):
            name = f"{i:012}.png"
            paint(root / f"{part}{ending}" / name, size=(20, 10), seed=i)
            images.append({"id": 100 + i, "width": 200, "height": 100, "file_name": name})
            for category, box in ((1, person), (18, dog)):
                if box is not None:
                    annotations.append(
                        {"id": 9, "image_id": 100 + i, "category_id": category, "bbox": box,
                         "area": 1.0, "iscrowd": 0, "segmentation": []}
                    )  # fmt: skip
        categories = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        path = root / "annotations" / f"instances_{part}{ending}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"info": {"year": 2017}, "licenses": [], **content}))
    return root


@pytest.mark.parametrize("ending", ["2017", "2014", ""])
def test_visual_wake_words_from_coco(tmp_path, ending):
    (tmp_path / "vww").mkdir()
    root = coco(tmp_path / "vww", ending)
    expected = [label for _, _, label in BOXES] * 2
    for spec, options in ((f"vww:{root}", {}), ("vww", {"data_root": tmp_path})):
        data = load_data(spec, **options, **SHAPE)
        assert data.class_names == ("no person", "person")
        assert data.test.labels == expected
        assert data.training_whole().labels == expected
        assert data.test.images[0] == root / f"val{ending}" / "000000000000.png"
        assert data.source.name == spec


def damage(root, change):
    path = root / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b.png", "..\\b", ""])
def test_visual_wake_words_stay_in_the_folder(tmp_path, name):
    root = coco(tmp_path)
    damage(root, lambda content: content["images"][0].update(file_name=name))
    refused(f"vww:{root}", "names the file .* outside of the folder of images")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("images"), "as COCO annotations: .*images"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "as COCO annotations"),
        (lambda c: c["images"][0].update(width="x"), "as COCO annotations"),
        (lambda c: c["categories"].pop(), "has no category 'person'"),
        (lambda c: c["images"][0].update(file_name="gone.png"), "gone.png"),
    ],
)
def test_visual_wake_words_with_damaged_annotations(tmp_path, change, words):
    root = coco(tmp_path)
    damage(root, change)
    refused(f"vww:{root}", words)


def test_visual_wake_words_without_files(tmp_path):
    refused("vww", "expected one file instances_train.* got none", data_root=tmp_path)
    root = coco(tmp_path)
    (root / "annotations" / "instances_train2014.json").write_text("{}")
    refused(f"vww:{root}", r"got instances_train2014\.json, instances_train2017\.json")
    (root / "annotations" / "instances_train2014.json").unlink()
    (root / "annotations" / "instances_train2017.json").write_bytes(b"[" * 100_000)
    refused(f"vww:{root}", "as COCO annotations")
