"""Use of a trained folder: evaluation by part, classes of files, the files of the run."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from plans import make_plan
from trainings import workload

from planner.api import classify, evaluate
from planner.cli import cli
from planner.scoring.counted_accuracy import counted_text
from planner.training.history import HISTORY_FILE, TrainResult
from planner.training.images.image_set import ImageSet
from planner.training.plan_check import load_data_for
from planner.training.resolve_recipe import RecipeChanges
from planner.training.run_files import CSV_FILE, SVG_FILE
from planner.training.run_options import RunOptions
from planner.training.trained_model import load_trained
from planner.training.training_run import train
from planner.training.use_trained import open_trained
from profiler.errors import InputError

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
SMALL = workload(
    model="test_vit", method="full", rank=None, num_classes=3, micro_batch=8, accumulation=1
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of plain colours: three classes that any model learns at once."""
    root = tmp_path_factory.mktemp("photos")
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for i in range(20):
            shade = tuple(max(0, c - 4 * i) for c in colour)
            Image.new("RGB", (40, 40 + i), shade).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    output = tmp_path_factory.mktemp("trained")
    plan = replace(make_plan(SMALL), provenance={"data": str(photos)})
    return train(
        plan,
        RunOptions(data=str(photos), pretrained=False, steps=6),
        output=output,
        changes=RecipeChanges(recipe="default"),
    )


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments], prog_name="budgetplan")


def test_the_record_has_class_names_and_transform(trained: TrainResult, photos: Path) -> None:
    record = json.loads((trained.output / HISTORY_FILE).read_text())
    assert record["class_names"] == ["blue", "green", "red"]
    data = load_data_for(SMALL, str(photos))
    form = data.test.input_format
    assert record["transform"] == {
        "image_size": 32, "mean": list(form.mean), "std": list(form.std), "crop": "centre",
    }  # fmt: skip


def test_evaluation_is_that_of_the_training(trained: TrainResult) -> None:
    found = evaluate(trained.output, device="cpu")
    assert (found.accuracy, found.images) == (trained.accuracy, trained.readings[-1].images)
    assert sum(each.right for each in found.classes) == round(found.accuracy * found.images)
    assert {each.name: each.images for each in found.classes} == dict.fromkeys(COLOURS, 4)
    chosen = evaluate(trained.output, part="selection", device="cpu")
    assert chosen.images == trained.data["selection_images"]


def test_an_evaluation_reports_its_progress(trained: TrainResult) -> None:
    seen: list[tuple[str, float]] = []
    evaluate(
        trained.output,
        device="cpu",
        on_progress=lambda stage, text, done: seen.append((stage, round(12 * done))),
    )
    assert seen == [("evaluate", 8), ("evaluate", 12)]  # 12 images in batches of 8
    done = call("evaluate", trained.output, "--device", "cpu", "--json", "--progress", "events")
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert events[-1]["stage"] == "evaluate"
    assert json.loads(done.stdout)["accuracy"] == trained.accuracy


def test_classes_of_files_are_those_of_the_model_on_the_transformed_image(
    trained: TrainResult, photos: Path
) -> None:
    files = [photos / name / "3.png" for name in COLOURS]
    found = classify(trained.output, files, top=3, device="cpu")
    model, data = load_trained(trained.output), load_data_for(SMALL, str(photos))
    for file, each in zip(files, found, strict=True):
        pixels = ImageSet(
            images=[file], labels=[0], input_format=data.test.input_format, crop=data.test.crop,
            mirror=False,
        )[0][0]  # fmt: skip
        with torch.no_grad():
            expected = model(pixels[None]).softmax(dim=1)[0]
        names = [data.class_names[int(i)] for i in expected.argsort(descending=True)]
        assert [name for name, _ in each.classes] == names
        assert sum(p for _, p in each.classes) == pytest.approx(1)
        assert each.classes[0][1] == pytest.approx(float(expected.max()), abs=1e-5)


def test_the_commands_and_an_unreadable_file(
    trained: TrainResult, photos: Path, tmp_path: Path
) -> None:
    shown = call("evaluate", trained.output, "--device", "cpu")
    assert shown.exit_code == 0, shown.stderr
    assert f"{counted_text(trained.accuracy, images=12)} of 12 images right" in " ".join(
        shown.stdout.split()
    )
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    good = photos / "red" / "1.png"
    done = call("classify", trained.output, good, broken, "--device", "cpu", "--json")
    assert done.exit_code == 4
    data = json.loads(done.stdout)
    assert data["images"][0]["class"] in COLOURS
    assert data["images"][1]["class"] is None
    assert "broken.png" in data["images"][1]["error"]
    assert data["error"]["exit_code"] == 4
    plain = call("classify", trained.output, good, "--device", "cpu", "--top", "2")
    assert plain.exit_code == 0
    assert "probability" in plain.stdout


def test_the_last_step_can_be_loaded_beside_the_best_epoch(trained: TrainResult) -> None:
    last = open_trained(trained.output, device="cpu", which="last").model.state_dict()
    (folder,) = trained.output.glob("checkpoint-*")
    from safetensors.torch import load_file

    (file,) = folder.glob("*.safetensors")
    saved = load_file(file)
    assert saved
    assert all(torch.equal(last[name], tensor) for name, tensor in saved.items())


def test_the_run_is_written_as_csv_and_svg(trained: TrainResult) -> None:
    with (trained.output / CSV_FILE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [r.step for r in trained.readings]
    assert float(rows[-1]["accuracy"]) == trained.accuracy
    root = ElementTree.fromstring((trained.output / SVG_FILE).read_text())
    lines = [each for each in root if each.tag.endswith("polyline")]
    assert len(lines) == 3  # loss, selection, test
    for line in lines:
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= 720
            assert 0 <= y <= 320


def test_wrong_folders_are_refused(trained: TrainResult, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        evaluate(tmp_path / "nothing")
    with pytest.raises(InputError, match="has other classes"):
        other = tmp_path / "other"
        for name in ("blue", "green", "pink"):
            (other / name).mkdir(parents=True)
            for i in range(20):
                Image.new("RGB", (40, 40), (i, i, i)).save(other / name / f"{i}.png")
        evaluate(trained.output, data=str(other), device="cpu")
    plan = tmp_path / "plan.json"
    plan.write_bytes((trained.output / "plan.json").read_bytes())
    with pytest.raises(InputError, match="has not been trained into"):
        evaluate(plan)


def test_a_folder_of_an_earlier_version_is_evaluated_and_classifies_nothing(
    trained: TrainResult, photos: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    old.mkdir()
    for path in trained.output.rglob("*"):
        place = old / path.relative_to(trained.output)
        place.mkdir(parents=True) if path.is_dir() else place.write_bytes(path.read_bytes())
    record = json.loads((old / HISTORY_FILE).read_text())
    del record["class_names"], record["transform"]
    (old / HISTORY_FILE).write_text(json.dumps(record | {"schema_minor": 2}))
    assert evaluate(old, device="cpu").accuracy == trained.accuracy
    with pytest.raises(InputError, match="neither class names nor a transform"):
        classify(old, [photos / "red" / "1.png"], device="cpu")
