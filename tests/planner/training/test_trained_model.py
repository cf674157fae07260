"""The folder of a training: saved, loaded by its own record, refused when its weights are gone."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from plans import make_plan
from torch import nn
from trainings import VIT, digits, learned, run, same, workload

from planner.plan import PLAN_FILE, read_plan
from planner.training.evaluate import evaluate_images
from planner.training.history import HISTORY_FILE
from planner.training.trained_model import MODEL_FOLDER, load_trained
from profiler.errors import InputError
from profiler.models.build import build_model


@pytest.mark.parametrize("model", [VIT, "test_resnet"])
def test_full_weights_that_were_saved_load_back_through_weights(tmp_path: Path, model: str) -> None:
    small = workload(model=model, method="full", rank=None)
    run(make_plan(small), tmp_path, epochs=1)
    (file,) = (tmp_path / MODEL_FOLDER).glob("*.safetensors")
    loaded = build_model(small, weights=file)
    assert loaded.weights.kind == "file"
    assert same(learned(tmp_path), dict(loaded.model.state_dict()))


def test_an_adapter_is_saved_in_pefts_own_format(tmp_path: Path) -> None:
    from peft import PeftModel

    from profiler.models.backbones import build

    plan = make_plan(workload(method="lora"))
    result = run(plan, tmp_path)
    torch.manual_seed(0)  # the frozen random weights of the training
    base = build(VIT, num_classes=10, image_size=32)
    again = PeftModel.from_pretrained(base, str(tmp_path / MODEL_FOLDER))
    test = digits(32, train_images=40, test_images=20).test
    assert evaluate_images(again, test, batch_size=8).accuracy == result.accuracy
    written = read_plan(tmp_path / PLAN_FILE)
    assert written.provenance["data"] == "digits"
    assert replace(written, recipe=None, provenance=plan.provenance) == plan


@pytest.mark.parametrize("method", ["full", "lora", "bitfit"])
def test_what_was_trained_is_loaded_from_its_folder(tmp_path: Path, method: str) -> None:
    plan = make_plan(workload(method=method, rank=4 if method == "lora" else None))
    result = run(plan, tmp_path)
    model = load_trained(tmp_path)
    assert not model.training
    test = digits(32, train_images=40, test_images=20).test
    assert evaluate_images(model, test, batch_size=8).accuracy == result.accuracy


def _same_answers(folder: Path, other: nn.Module, **given: Any) -> bool:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.equal(load_trained(folder, **given)(images), other(images))


def test_a_trained_folder_records_its_seed_and_its_weights_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    plan, file = make_plan(workload()), tmp_path / "weights.safetensors"
    torch.manual_seed(5)
    backbone = build_model(workload(method="full", rank=None)).model
    save_file(backbone.state_dict(), file)
    run(plan, tmp_path / "random", steps=1, seed=3)
    run(plan, tmp_path / "file", steps=1, weights=file)
    record = json.loads((tmp_path / "file" / HISTORY_FILE).read_text())
    assert record["weights_file"] == {
        "path": str(file),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    from_file = load_trained(tmp_path / "file")
    assert not _same_answers(tmp_path / "random", from_file)
    assert _same_answers(tmp_path / "random", load_trained(tmp_path / "random", seed=3))
    assert not _same_answers(tmp_path / "random", load_trained(tmp_path / "random", seed=4))

    moved = file.rename(tmp_path / "moved.safetensors")
    with pytest.raises(InputError, match=r"weights\.safetensors .* is missing"):
        load_trained(tmp_path / "file")
    assert _same_answers(tmp_path / "file", from_file, weights=moved)
    other = {name: tensor + 1 for name, tensor in backbone.state_dict().items()}
    save_file(other, moved)
    with pytest.raises(InputError, match="not the one"):
        load_trained(tmp_path / "file", weights=moved)


def test_a_folder_of_an_older_version_is_loaded_with_the_arguments(tmp_path: Path) -> None:
    run(make_plan(workload()), tmp_path, steps=1, seed=3)
    expected, path = load_trained(tmp_path), tmp_path / HISTORY_FILE
    record = json.loads(path.read_text())
    for name in ("schema_minor", "seed", "weights_file"):
        del record[name]
    path.write_text(json.dumps(record))
    assert _same_answers(tmp_path, expected, seed=3)
    assert not _same_answers(tmp_path, expected)
