"""Zero-shot evaluation on images, against open_clip's own classifier and a written-out loop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from planner import api
from planner.cli import cli
from planner.training.images.load import load_data
from planner.training_free.class_prompts import (
    check_prompts,
    matching_class,
    prompts_for,
    read_class_names,
    spoken_names,
)
from planner.training_free.zero_shot import ZeroShotRun, class_features, evaluate_zero_shot
from profiler.errors import InputError, UsageError
from profiler.models.frozen import catalogue
from profiler.models.frozen.load import load_two_towers
from tests.profiler.models.frozen.checkpoints import prompted_folder, towers_folder
from tests.profiler.models.frozen.tiny import TINY

NAMES = ("maple_tree", "sea", "zebra")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in NAMES:
        (folder / name).mkdir()
        for number in range(10):
            pixels = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(autouse=True)
def _tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "frozen_models", lambda: TINY)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_class_is_that_of_open_clips_classifier(
    name: str, pictures: Path, tmp_path: Path
) -> None:
    import open_clip

    made = towers_folder(name, tmp_path)
    towers = load_two_towers(TINY[name], tmp_path)
    spoken, prompts = spoken_names(NAMES), prompts_for("photos")
    templates = [prompt.replace("{}", "{0}") for prompt in prompts]
    expected = open_clip.build_zero_shot_classifier(made, towers.tokenize, spoken, templates)
    assert torch.allclose(class_features(towers, spoken, prompts).T, expected, atol=1e-5)

    run = ZeroShotRun(data=str(pictures), weights=tmp_path)
    found = evaluate_zero_shot(TINY[name], run)
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    data = load_data(str(pictures), image_size=TINY[name].image_size, mean=mean, std=std).test
    assert found.images == len(data) == 6
    assert sum(each.images for each in found.classes) == 6
    # the library's resize is bicubic too
    from torchvision.transforms import functional

    right = 0
    for file, label in zip(data.images, data.labels, strict=True):
        image = Image.open(file)
        box = data.crop(image.width, image.height, None)
        size = (TINY[name].image_size,) * 2
        cut = image.resize(size, Image.Resampling.BICUBIC, box=box)
        pixels = functional.normalize(functional.to_tensor(cut), mean, std)
        with torch.no_grad():
            scores = made.encode_image(pixels[None], normalize=True) @ expected
        right += int(scores.argmax()) == label
    assert found.accuracy == pytest.approx(right / 6)


@pytest.mark.parametrize("name", ["paligemma", "smolvlm", "mobilevlm"])
def test_both_answers_of_a_prompted_model(name: str, pictures: Path, tmp_path: Path) -> None:
    prompted_folder(name, tmp_path)
    found = api.zero_shot(name, weights=tmp_path, data=str(pictures), images=3)
    assert (found.images, found.protocol, found.is_four_bit) == (3, "likelihood", False)
    assert found.free_answers is not None
    assert 0 <= found.free_answers.accuracy <= found.free_answers.answered <= 1
    small = api.zero_shot(name, weights=tmp_path, data=str(pictures), images=3, four_bit=True)
    assert small.is_four_bit


def test_the_command(pictures: Path, tmp_path: Path) -> None:
    towers_folder("clip", tmp_path)
    names = tmp_path / "names.txt"
    names.write_text("a tree\nthe sea\na zebra\n")
    command = ["zero-shot", "--model", "clip", "--weights", str(tmp_path), "--data", str(pictures)]
    options = ["--class-names", str(names), "--prompt", "a photo of {}.", "--images", "4"]
    done = CliRunner().invoke(cli, [*command, *options, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["schema"] == "budgetplan.zero_shot/1"
    assert [each["name"] for each in answer["classes"]] == ["a tree", "the sea", "a zebra"]
    assert answer["prompts"] == ["a photo of {}."]
    shown = CliRunner().invoke(cli, [*command, *options]).stdout
    assert "of 4 images right by class names" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_wrong_arguments_are_one_line(pictures: Path, tmp_path: Path) -> None:
    def refused(text: str, *, kind: type[Exception] = UsageError, **options: object) -> None:
        with pytest.raises(kind, match=text) as error:
            api.zero_shot(**{"model": "clip", "weights": tmp_path, "data": str(pictures)} | options)
        assert "\n" not in str(error.value)

    refused("use `budgetplan features`", model="features")
    refused("only prompted models are stored in 4 bits", four_bit=True)
    refused("asked one question, got 2 prompts", model="smolvlm", prompts=("a", "b"))
    refused(r"has \{\} once", prompts=("a photo",))
    refused("images must be at least 1", images=0)
    refused("does not exist", kind=InputError, weights=tmp_path / "none")
    short = tmp_path / "short.txt"
    short.write_text("one\ntwo\n")
    refused("has 2 names, .* has 3 classes", kind=InputError, class_names=short)


def test_class_names(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("maple tree\n\nsea\n")
    with pytest.raises(InputError, match="line 2: expected a class name"):
        read_class_names(file)
    file.write_bytes(b"\xff\xfe\n")
    with pytest.raises(InputError, match="cannot be read as UTF-8"):
        read_class_names(file)
    assert spoken_names(["maple_tree"]) == ("maple tree",)
    with pytest.raises(InputError, match="give them with --class-names"):
        spoken_names(["class 0", "class 1"])


def test_ensembles_have_the_published_sizes() -> None:
    sizes = {name: len(check_prompts(prompts_for(name))) for name in ("cifar100", "dtd", "x")}
    assert sizes == {"cifar100": 18, "dtd": 8, "x": 7}
    assert all(len(set(prompts_for(name))) == size for name, size in sizes.items())
    assert prompts_for("cifar10-c:fog:3") == prompts_for("cifar10")
    from open_clip.zero_shot_metadata import SIMPLE_IMAGENET_TEMPLATES

    texts = {template("dog") for template in SIMPLE_IMAGENET_TEMPLATES}
    assert {prompt.replace("{}", "dog") for prompt in prompts_for("x")} == texts


def test_a_free_answer_names_the_longest_class_in_it() -> None:
    names = ["cat", "catfish", "black cat", "maple_tree"]
    answers = ["Cat.", "a catfish", "It is a black cat!", "a Maple tree", "a caterpillar", ""]
    assert [matching_class(answer, names) for answer in answers] == [0, 1, 2, 3, None, None]
