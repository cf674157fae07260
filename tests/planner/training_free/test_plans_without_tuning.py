"""Plan files without fine-tuning: reading, commands, and the folder of a linear probe."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from planner import api
from planner.cli import cli
from planner.plan import read_plan
from planner.training_free import probe_folder
from planner.training_free.features import extract_features, linear_probe
from planner.training_free.options import TrainingFreeOption
from planner.training_free.plan_file import (
    plan_of_option,
    read_frozen_plan,
    with_plan_files,
    write_frozen_plan,
)
from profiler.devices.table import device_label
from profiler.errors import InputError, UsageError
from profiler.models.frozen import catalogue
from profiler.models.frozen.catalogue import PublishedAccuracy
from tests.profiler.models.frozen.checkpoints import towers_folder
from tests.profiler.models.frozen.tiny import TINY

MODELS = TINY | {
    "features": replace(TINY["features"], model="test_efficientnet", image_size=32),
}


@pytest.fixture(autouse=True)
def _tiny_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(catalogue, "frozen_models", lambda: MODELS)
    monkeypatch.setenv("BUDGETPLAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def option(name: str, *, fits: bool = True, is_four_bit: bool = False) -> TrainingFreeOption:
    known = PublishedAccuracy(value=0.5, protocol="zero-shot", source="a paper")
    return TrainingFreeOption(
        model=MODELS[name], batch=1, dtype="float32", is_four_bit=is_four_bit,
        peak_bytes=10**7, device_bytes=2 * 10**7, fits=fits,
        accuracy=known if name == "clip" else None, num_classes=10, cost=None, probe=None,
    )  # fmt: skip


def write(name: str, folder: Path, **options: Any) -> Path:
    plan = plan_of_option(
        option(name, **options), device=device_label("cpu"), budget_bytes=10**8, data="digits"
    )
    return write_frozen_plan(plan, folder)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    for name, options in (("clip", {}), ("features", {}), ("smolvlm", {"is_four_bit": True})):
        file = write(name, tmp_path / "plans", **options)
        plan = read_frozen_plan(file)
        assert plan.to_json() == json.loads(file.read_text())
        assert plan.candidate.kind == ("features" if name == "features" else "zero_shot")
    assert file.name == "zero_shot-smolvlm-b1-4bit.json"
    assert api.plan_kind(file) == "zero_shot"


def test_files_are_written_for_what_fits_and_never_lost(tmp_path: Path) -> None:
    options = (option("clip"), option("siglip", fits=False))
    given = {
        "folder": tmp_path / "plans", "device": device_label("cpu"), "budget_bytes": 10**8,
        "data": "digits",
    }  # fmt: skip
    first = with_plan_files(options, **given)
    assert first[1].plan_file is None
    assert with_plan_files(options, **given) == first
    other = with_plan_files(options, **given | {"data": "animals"})
    assert other[0].plan_file.name == "zero_shot-clip-b1-fp32-2.json"
    assert len(list((tmp_path / "plans").iterdir())) == 2


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("candidate", "kind"), "magic", "expected one of tuned, features, zero_shot, got 'magic'"),
        (("candidate", "kind"), "features", "clip is of kind 'zero_shot'"),
        (("candidate", "model"), "clap", "frozen model 'clap'"),
        (("candidate", "four_bit"), True, "only prompted models are stored in 4 bits"),
        (("candidate", "batch"), 0, "plan.candidate.batch"),
        (("candidate", "dtype"), "int8", "plan.candidate.dtype"),
        (("candidate", "prompts"), ["a photo"], r"has \{\} once"),
        (("candidate", "extra"), 1, "plan.candidate.extra"),
        (("prediction", "peak_bytes"), -1, "plan.prediction.peak_bytes"),
        (("prediction", "device", "name"), "rtx-9999", "plan.prediction.device"),
        (("accuracy", "value"), 2.0, "plan.accuracy.value"),
        (("measurement",), {}, "must be null"),
        (("budget_bytes",), 1, "plan.budget_bytes"),
        (("provenance", "data"), 3, "plan.provenance.data"),
        (("schema",), "budgetplan.plan/2", "schema"),
    ],
)
def test_damaged_plans_are_one_line(
    tmp_path: Path, path: tuple[str, ...], value: object, message: str
) -> None:
    file = write("clip", tmp_path)
    content = json.loads(file.read_text())
    inner = content
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as error:
        read_frozen_plan(file) if value != "magic" else api.plan_kind(file)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    done = run("show", file, "--json")
    assert done.exit_code == 4
    assert json.loads(done.stdout)["schema"] == "budgetplan.error/1"


def test_commands_of_tuned_plans_refuse_it(tmp_path: Path) -> None:
    file = write("clip", tmp_path)
    with pytest.raises(
        InputError, match="of kind 'zero_shot', which fine-tunes nothing: only `sho"
    ):
        read_plan(file)
    for command in (
        ("validate", file), ("explain", file), ("check", file),
        ("rehearse", file), ("export", file, "--to", "script"), ("score", file),
    ):  # fmt: skip
        done = run(*command)
        assert done.exit_code == 4, (command, done.output)
        assert "fine-tunes nothing" in done.stderr
    done = run("train", file)
    assert done.exit_code == 4
    assert "`budgetplan evaluate PLAN` runs it" in done.stderr


def test_show(tmp_path: Path) -> None:
    shown = run("show", write("clip", tmp_path)).stdout
    assert "zero_shot: images are compared with class names" in shown
    assert "50.0 % (published)" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "linear probe" in run("show", write("features", tmp_path)).stdout


def test_evaluate_runs_a_zero_shot_plan(tmp_path: Path) -> None:
    file = write("clip", tmp_path / "plans")
    towers_folder("clip", tmp_path / "weights")
    done = run("evaluate", file, "--weights", tmp_path / "weights", "--images", 5, "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert (answer["model"], answer["data"], answer["images"]) == ("clip", "digits", 5)
    assert run("evaluate", file).exit_code == 2
    assert "--weights" in run("evaluate", file).stderr
    for command in (["evaluate", file], ["classify", file, "image.png"]):
        refused = run(*command, "--which", "best")
        assert refused.exit_code == 2
        assert "--which is for plans that fine-tune" in refused.stderr


def assert_other_weights_are_refused(folder: Path, image: Path, state: dict[str, Any]) -> None:
    import torch

    torch.save({name: tensor + 1 for name, tensor in state.items()}, "other.pt")
    for command in (("evaluate", folder), ("classify", folder, image)):
        refused = run(*command, "--weights", "other.pt")
        assert refused.exit_code == 4
        assert "other.pt holds other weights" in refused.stderr


def assert_evaluation_shows_its_progress(folder: Path) -> None:
    shown = run("evaluate", folder, "--part", "selection", "--progress", "events")
    assert "images right" in " ".join(shown.stdout.split())
    assert json.loads(shown.stderr.splitlines()[-1])["stage"] == "features"


def test_train_fits_a_linear_probe_and_evaluate_tests_it(tmp_path: Path) -> None:
    file = write("features", tmp_path / "plans")
    import torch

    torch.manual_seed(0)
    weights = tmp_path / "weights.pt"
    from profiler.models import backbones

    built = backbones.build("test_efficientnet", num_classes=10, image_size=32, device="cpu")
    torch.save(built.state_dict(), weights)
    assert run("evaluate", file).exit_code == 4
    done = run("train", file, "--weights", weights, "--device", "cpu", "--json")
    assert done.exit_code == 0, done.output
    fitted = json.loads(done.stdout)
    assert fitted["output"] == "trained/features-features-b1-fp32"
    folder = tmp_path / fitted["output"]
    assert {p.name for p in folder.iterdir()} == {"plan.json", "probe.json", "probe.safetensors"}
    # scikit-learn's own probe on the same features
    found = extract_features(
        "test_efficientnet", data="digits", image_size=32, weights=weights, pretrained=False
    )
    probe, strength = linear_probe(found.parts)
    test, labels = found.parts["test"]
    assert fitted["accuracy"] == pytest.approx((probe.predict(test) == labels).mean(), abs=0.003)
    assert fitted["inverse_regularisation"] == strength
    assert fitted["accuracy"] > 0.5
    assert (fitted["device"], fitted["dtype"], fitted["batch"]) == ("cpu", "float32", 1)
    for place in (file, folder):
        evaluated = run("evaluate", place, "--device", "cpu", "--json")
        assert evaluated.exit_code == 0, evaluated.output
        assert json.loads(evaluated.stdout)["accuracy"] == fitted["accuracy"]
    # single files get the class that the probe gives the same images of the data set
    from PIL import Image

    shown = found.images.test
    for number in range(20):
        Image.fromarray(np.asarray(shown.images[number])).save(tmp_path / f"{number}.png")
    files = [tmp_path / f"{number}.png" for number in range(20)]
    for place in (file, folder):
        done = run("classify", place, *files, "--device", "cpu", "--json")
        assert done.exit_code == 0, done.output
        classes = [int(each["class"]) for each in json.loads(done.stdout)["images"]]
        _, weight, bias = probe_folder.read_probe(folder)
        assert classes == probe_folder._predicted(test[:20], weight, bias).tolist()
    done = run("classify", write("clip", tmp_path), files[0])
    assert done.exit_code == 4
    assert "no probe is fitted to it" in done.stderr
    assert_evaluation_shows_its_progress(folder)
    refused = run("train", file, "--weights", weights, "--epochs", 3)
    assert refused.exit_code == 2
    assert "--epochs is for plans that fine-tune" in refused.stderr
    assert run("train", file, "--weights", weights).exit_code == 0  # its own folder is replaced
    assert_other_weights_are_refused(folder, files[0], built.state_dict())
    (folder / "probe.safetensors").write_bytes(b"damaged")
    assert run("evaluate", folder).exit_code == 4
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    lost = run("train", file, "--weights", weights, "--out", tmp_path / "mine")
    assert lost.exit_code == 4
    assert "holds diary.txt" in lost.stderr
    assert (tmp_path / "mine" / "diary.txt").exists()


def test_a_probe_of_two_classes_is_one_linear_layer() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    features = (rng.normal(size=(200, 5)) + labels[:, None]).astype(np.float32)
    part = features, labels
    probe, _ = linear_probe({"training": part, "selection": part, "test": part})
    weight, bias = probe_folder._linear_layer(probe, classes=2)
    assert weight.shape == (2, 5)
    assert (probe_folder._predicted(features, weight, bias) == probe.predict(features)).all()


def test_arguments_of_another_kind(tmp_path: Path) -> None:
    file = write("features", tmp_path)
    with pytest.raises(UsageError, match="for plans of kind 'zero_shot'"):
        api.evaluate_frozen(file, images=3)
    with pytest.raises(InputError, match="is not fitted to images"):
        api.train_probe(write("clip", tmp_path))


VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1e308, "", "x" * 30_000, "a\nb", "\u202e", [], {}, [[]], {"a": 1}, "nan",
    "../../etc/passwd", 2**70,
)  # fmt: skip


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value in a JSON object."""
    found = [path] if path else []
    items = data.items() if isinstance(data, dict) else ()
    for key, value in enumerate(data) if isinstance(data, list) else items:
        found += places(value, (*path, key))
    return found


@pytest.mark.parametrize("name", ["clip", "features", "smolvlm"])
def test_no_mutant_of_a_plan_is_more_than_one_line(name: str, tmp_path: Path) -> None:
    file = write(name, tmp_path)
    whole = json.loads(file.read_text())
    refused = 0
    for path in places(whole):
        for value in VALUES:
            content = json.loads(json.dumps(whole))
            inner = content
            for part in path[:-1]:
                inner = inner[part]
            inner[path[-1]] = value
            file.write_text(json.dumps(content))
            try:
                read_frozen_plan(file)
            except InputError as error:
                refused += 1
                text = str(error).replace(str(file), "FILE")
                assert "\n" not in text and len(text) <= 400 and text.isprintable(), text
    assert refused > 300
