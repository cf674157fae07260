from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from planner.recommendation.without_training import (
    best_without_training,
    list_training_free,
    training_free_notes,
)
from planner.training_free.options import Inferences, TrainingFreeOption, models_at_hand
from profiler.devices.table import device_label, device_spec
from profiler.models.frozen.catalogue import frozen_models
from profiler.store import Store


def request(wanted: bool | None) -> Any:
    return SimpleNamespace(
        training_free=wanted,
        device=SimpleNamespace(name="rtx-3060"),
        allow_training_free=False,
        budget_bytes=2 * 10**9,
        risk=0.01,
        run=SimpleNamespace(data="cifar100"),
    )


def tuned(accuracy: float | None, *, millions: float = 22) -> Any:
    plan = SimpleNamespace(
        candidate=SimpleNamespace(workload=SimpleNamespace(model="vit_small_patch16_224")),
        prediction=SimpleNamespace(parameters=SimpleNamespace(total=millions * 1e6)),
    )
    return SimpleNamespace(plan=plan, expected=SimpleNamespace(value=accuracy))


def option(name: str, *, fits: bool) -> TrainingFreeOption:
    model = frozen_models()[name]
    return TrainingFreeOption(
        model=model, batch=1, dtype="float16", peak_bytes=1, device_bytes=1, fits=fits,
        is_four_bit=False, accuracy=model.accuracies.get("cifar100"), num_classes=100, cost=None,
        probe=None,
    )  # fmt: skip


def test_nothing_is_replayed_unless_it_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUDGETPLAN_CACHE", str(tmp_path))
    monkeypatch.setenv("BUDGETPLAN_TRAINING_FREE", "0")
    for wanted in (None, False):
        assert list_training_free(request(wanted), lambda *_: None) is None
    assert not list(tmp_path.iterdir())
    assert "--training-free lists them" in next(
        training_free_notes(request(None), None, tuned(0.9))
    )
    assert list(training_free_notes(request(False), None, tuned(0.9))) == []


def test_without_a_wish_the_quick_ones_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, gpu = Store(tmp_path / "cache"), device_spec("rtx-3060")
    quick = models_at_hand(gpu, store, budget_bytes=2 * 10**9)
    assert {model.kind for model in quick} == {"features", "zero_shot"}
    Inferences(gpu, store).of(frozen_models()["smolvlm_256m"], 1, False)
    known = models_at_hand(gpu, store, budget_bytes=2 * 10**9)
    assert [m.name for m in known if m not in quick] == ["smolvlm_256m"]

    monkeypatch.setenv("BUDGETPLAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BUDGETPLAN_TRAINING_FREE")
    name = "planner.recommendation.without_training.models_at_hand"
    monkeypatch.setattr(name, lambda *_, **__: [frozen_models()["dinov2_s"]])
    asked = request(None)
    asked.out, asked.device = tmp_path / "plans", device_label("rtx-3060")
    asked.train_images = 45_000
    asked.space = SimpleNamespace(base=SimpleNamespace(num_classes=100))
    found = list_training_free(asked, lambda *_: None)
    assert found is not None
    (only,) = found
    assert only.plan_file == tmp_path / "plans" / "features-dinov2_s-b32-fp16.json"
    assert only.plan_file.exists()
    assert only.probe.extraction_seconds > 1
    assert (
        "12 more models without fine-tuning were not looked at"
        in list(training_free_notes(asked, [only], tuned(0.9)))[1]
    )


def test_the_note_names_the_most_accurate_model_that_fits() -> None:
    options = (option("dinov2_l", fits=True), option("paligemma_3b", fits=False))
    note, _, size = training_free_notes(request(True), options, tuned(0.9))
    assert note.startswith("1 of 2 published models")
    assert "dinov2_l is published with 91.7 % on cifar100" in note
    assert "dinov2_l has 304 M frozen parameters, vit_small_patch16_224 22 M tuned ones" in size
    assert len(list(training_free_notes(request(True), options, tuned(0.9, millions=300)))) == 2


def test_a_model_without_tuning_wins_only_if_it_may_and_if_it_is_known_to_be_better() -> None:
    options = (
        option("openclip_l14", fits=True),
        option("dinov2_l", fits=True),
        option("smolvlm_500m", fits=True),
    )
    asked = request(True)
    assert best_without_training(asked, options, tuned(0.5)) is None
    asked.allow_training_free = True
    assert best_without_training(asked, options, tuned(0.5)) == 1
    assert best_without_training(asked, options, tuned(0.9)) == 1
    assert best_without_training(asked, options, tuned(0.92)) is None
    assert best_without_training(asked, options, tuned(None)) is None
    too_big = (option("dinov2_l", fits=False), option("openclip_l14", fits=True))
    assert best_without_training(asked, too_big, tuned(0.8)) == 1
    assert (
        "no accuracy of the tuned plan"
        in list(training_free_notes(asked, options, tuned(None)))[-1]
    )
