from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from planner.training_free.features import (
    NEIGHBOURS,
    TEMPERATURE,
    evaluate_features,
    fit_and_test,
)


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
    import torch

    torch.manual_seed(0)
    first = evaluate_features("test_efficientnet", **options)
    assert first.train_images + first.test_images < 1797  # the selection part is in neither
    assert first.linear_probe > 0.5
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    torch.manual_seed(0)
    assert evaluate_features("test_efficientnet", **options) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")} == files
