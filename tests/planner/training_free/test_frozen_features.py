from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from planner.cli import cli
from planner.training.features import FeatureForward
from planner.training.images.load import load_data
from planner.training_free.features import (
    NEIGHBOURS,
    TEMPERATURE,
    evaluate_features,
    extract_features,
    feature_forward,
    fit_and_test,
)
from profiler.errors import InputError
from profiler.models.backbones import image_statistics
from profiler.models.build import build_model


def clusters(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three overlapping classes of 8 features."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    centres = np.random.default_rng(0).normal(size=(3, 8))
    return (centres[labels] + rng.normal(size=(count, 8))).astype(np.float32), labels


def vote(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """DINO's weighted vote, written out: sum of exp(similarity / T) over the nearest images."""
    unit = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in (train, test)]
    similarity = unit[1] @ unit[0].T
    nearest = np.argsort(-similarity, axis=1)[:, :NEIGHBOURS]
    votes = np.zeros((len(test), 3))
    for row, columns in enumerate(nearest):
        for column in columns:
            votes[row, labels[column]] += np.exp(similarity[row, column] / TEMPERATURE)
    return votes.argmax(1)


def test_knn_is_dinos_weighted_vote_and_the_probe_learns() -> None:
    train, selection, test = clusters(300, 1), clusters(60, 2), clusters(500, 3)
    found = fit_and_test(
        {"training": train, "selection": selection, "test": test}, model="m", weights="file"
    )
    expected = (vote(*train, test[0]) == test[1]).mean()
    assert found.knn == pytest.approx(expected, abs=1e-9)
    # the best classifier of three such normal distributions: the nearest centre
    centres = np.random.default_rng(0).normal(size=(3, 8))
    distances = np.linalg.norm(test[0][:, None] - centres[None], axis=2)
    best = (distances.argmin(1) == test[1]).mean()
    assert best - 0.05 < found.linear_probe <= best + 0.02


def test_features_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {
        "data": "digits", "image_size": 32, "pretrained": False, "folder": tmp_path,
    }  # fmt: skip
    torch.manual_seed(0)
    first = evaluate_features("test_efficientnet", **options)
    assert first.train_images + first.test_images < 1797  # the selection part is in neither
    assert first.linear_probe > 0.5
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    torch.manual_seed(0)
    assert evaluate_features("test_efficientnet", **options) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")} == files


def test_a_folder_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(spec: str, **given: Any) -> Any:
        read.append(spec)
        return load_data(spec, **given)

    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    monkeypatch.setattr("planner.training_free.features.load_data", counted)
    found = extract_features(
        "test_efficientnet",
        data=str(tmp_path / "images"),
        parts=("test",),
        image_size=32,
        pretrained=False,
        folder=tmp_path / "kept",
    )
    assert read == [str(tmp_path / "images")]
    assert found.workload.num_classes == 2
    model = build_model(found.workload, device="meta").backbone
    form = found.images.test.input_format
    assert (form.mean, form.std) == image_statistics(model)


def test_features_in_fp16_are_near_those_in_fp32_and_kept_apart(tmp_path: Path) -> None:
    """The forward of a GPU, on the CPU: half weights, half pixels, its own files."""
    options = {"data": "digits", "image_size": 32, "pretrained": False, "folder": tmp_path}
    half = FeatureForward(dtype=torch.float16, batch=100)
    found = []
    for forward in (None, half):
        torch.manual_seed(0)
        made = extract_features("test_efficientnet", parts=("test",), forward=forward, **options)
        found.append(made.parts["test"][0])
    assert (made.forward, made.forward.dtype_name) == (half, "float16")
    assert 0 < np.abs(found[0] - found[1]).max() < 0.01 * np.abs(found[0]).max()
    assert len(list(tmp_path.iterdir())) == 2


def test_features_beyond_the_range_of_fp16_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(*arguments: Any, **options: Any) -> object:
        made: Any = build_model(*arguments, **options)
        for tensor in made.backbone.conv_head.parameters():
            tensor.data.mul_(1e6)
        for tensor in made.backbone.bn2.buffers():
            tensor.data.zero_()
        return made

    monkeypatch.setattr("planner.training_free.features.build_model", built)
    with pytest.raises(InputError, match="float16 are not finite; use --device cpu"):
        extract_features(
            "test_efficientnet", data="digits", parts=("test",), image_size=32, pretrained=False,
            forward=FeatureForward(dtype=torch.float16), folder=tmp_path,
        )  # fmt: skip


def test_a_cpu_computes_in_fp32_and_a_missing_gpu_is_one_line() -> None:
    assert feature_forward("cpu", dtype="float16", batch=8) == FeatureForward(batch=8)
    on_gpu = feature_forward("cuda", batch=8)
    assert on_gpu == FeatureForward(device="cuda", dtype=torch.float16, batch=8)
    assert feature_forward("cuda", dtype="float32").dtype == torch.float32
    if torch.cuda.is_available():
        return
    done = CliRunner().invoke(cli, ["features", "--model", "test_vit", "--device", "cuda"])
    assert done.exit_code == 5
    assert "use --device cpu" in done.stderr
