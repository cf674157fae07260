from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from planner.recommendation.without_training import list_training_free, training_free_notes
from planner.training_free.options import TrainingFreeOption
from profiler.models.frozen.catalogue import frozen_models


def request(wanted: bool | None) -> Any:
    return SimpleNamespace(
        training_free=wanted,
        device=SimpleNamespace(name="rtx-3060"),
        budget_bytes=2 * 10**9,
        run=SimpleNamespace(data="cifar100"),
    )


def option(name: str, *, fits: bool) -> TrainingFreeOption:
    model = frozen_models()[name]
    return TrainingFreeOption(
        model=model, batch=1, dtype="float16", peak_bytes=1, device_bytes=1, fits=fits,
        accuracy=model.accuracies.get("cifar100"),
    )  # fmt: skip


def test_nothing_is_replayed_unless_it_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUDGETPLAN_CACHE", str(tmp_path))
    for wanted in (None, False):
        assert list_training_free(request(wanted), lambda *_: None) is None
    assert not list(tmp_path.iterdir())
    assert "--training-free lists them" in next(training_free_notes(request(None), None))
    assert list(training_free_notes(request(False), None)) == []


def test_the_note_names_the_most_accurate_model_that_fits() -> None:
    options = (option("dinov2_l", fits=True), option("paligemma_3b", fits=False))
    (note,) = training_free_notes(request(True), options)
    assert note.startswith("1 of 2 published models")
    assert "dinov2_l is published with 91.7 % on cifar100" in note
