"""Cached features: equal to the model's own, computed once, refused where they are not exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trainings import digits, workload

import planner.training.features as features_module
from planner.training.features import (
    CHUNK_IMAGES,
    FeatureForward,
    FeatureSet,
    cached_features,
    frozen_classifier,
)
from planner.training.images.image_set import ImageSet
from profiler.models.build import BuiltModel, build_model


def built(method: str = "head", **changes: object) -> BuiltModel:
    torch.manual_seed(0)
    small = workload(model="test_resnet", method=method, rank=None, **changes)
    model = build_model(small)
    model.model.train()
    return model


def images(count: int = 20) -> ImageSet:
    return digits(32, train_images=40, test_images=20).test.select(
        [index % 20 for index in range(count)]
    )


def stacked(some: ImageSet) -> torch.Tensor:
    return torch.stack([some[index][0] for index in range(len(some))])


def test_the_classifier_on_cached_features_answers_as_the_whole_model(tmp_path: Path) -> None:
    model, some = built(), images()
    classifier = frozen_classifier(model, stacked(some)[:4])
    assert classifier is not None
    found = cached_features(model, classifier, some, folder=tmp_path)
    assert list(found.labels) == list(some.labels)
    rows = torch.stack([found[index][0] for index in range(len(found))])
    with torch.no_grad():
        expected = model.model.eval()(stacked(some))
        torch.testing.assert_close(classifier(rows), expected)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("full", {"frozen_batch_norm": True}),  # more learns than the classifier
        ("bn_head", {"frozen_batch_norm": True}),
    ],
)
def test_models_that_learn_elsewhere_have_no_cached_features(
    method: str, changes: dict[str, bool]
) -> None:
    assert frozen_classifier(built(method, **changes), stacked(images(4))) is None


def test_dropout_before_the_classifier_is_found() -> None:
    model = built()
    backbone: Any = model.backbone
    backbone.drop_rate = 0.5
    head = backbone.fc
    backbone.global_pool.flatten = torch.nn.Sequential(
        backbone.global_pool.flatten, torch.nn.Dropout(0.5)
    )
    assert head is not None
    assert frozen_classifier(model, stacked(images(4))) is None


def test_an_interrupted_extraction_goes_on_without_repeating(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, some = built(), images(2 * CHUNK_IMAGES + 3)
    classifier = frozen_classifier(model, stacked(images(4)))
    assert classifier is not None
    extracted: list[int] = []
    extract = features_module._extract

    def counted(
        model: BuiltModel, classifier: torch.nn.Module, part: ImageSet, forward: FeatureForward
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        if len(extracted) == 2 and not (tmp_path / "resumed").exists():
            raise KeyboardInterrupt
        extracted.append(len(part))
        return extract(model, classifier, part, forward)

    monkeypatch.setattr(features_module, "_extract", counted)
    with pytest.raises(KeyboardInterrupt):
        cached_features(model, classifier, some, folder=tmp_path)
    (tmp_path / "resumed").touch()
    found = cached_features(model, classifier, some, folder=tmp_path)
    assert extracted == [CHUNK_IMAGES, CHUNK_IMAGES, 3]
    assert len(found) == len(some)

    (folder,) = (each for each in tmp_path.iterdir() if each.is_dir())
    for damaged in folder.glob("*.npz"):
        content = bytearray(damaged.read_bytes())
        content[300] ^= 1  # one bit of a feature
        damaged.write_bytes(content)
    again = cached_features(model, classifier, some, folder=tmp_path)
    assert extracted == 2 * [CHUNK_IMAGES, CHUNK_IMAGES, 3]
    for mine, whole in zip(again.chunks, found.chunks, strict=True):
        np.testing.assert_array_equal(mine, whole)


def test_other_weights_and_other_images_have_other_features(tmp_path: Path) -> None:
    model, some = built(), images()
    classifier = frozen_classifier(model, stacked(some)[:4])
    assert classifier is not None

    def folders() -> int:
        return len(list(tmp_path.iterdir()))

    cached_features(model, classifier, some, folder=tmp_path)
    with torch.no_grad():
        classifier.weight.add_(1)  # the classifier's own weights do not matter
    cached_features(model, classifier, some, folder=tmp_path)
    assert folders() == 1
    cached_features(model, classifier, some.select(range(10)), folder=tmp_path)
    assert folders() == 2
    with torch.no_grad():
        next(iter(model.model.parameters())).add_(0.1)
    cached_features(model, classifier, some, folder=tmp_path)
    assert folders() == 3


def test_a_pickled_object_is_never_loaded(tmp_path: Path) -> None:
    model, some = built(), images()
    classifier = frozen_classifier(model, stacked(some)[:4])
    assert classifier is not None
    cached_features(model, classifier, some, folder=tmp_path)
    (file,) = tmp_path.rglob("*.npz")
    np.savez(file, features=np.array([{"a": 1}] * len(some), dtype=object))
    found = cached_features(model, classifier, some, folder=tmp_path)
    assert isinstance(found, FeatureSet)
    assert found[0][0].dtype == torch.float32


def test_without_a_home_folder_features_are_kept_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.delenv("BUDGETPLAN_CACHE", raising=False)
    assert features_module.default_features_folder() is None
    model, some = built(), images(3)
    classifier = frozen_classifier(model, stacked(some))
    assert classifier is not None
    in_memory = cached_features(model, classifier, some)
    kept = cached_features(model, classifier, some, folder=tmp_path)
    np.testing.assert_array_equal(in_memory.chunks[0], kept.chunks[0])
    monkeypatch.setenv("BUDGETPLAN_CACHE", str(tmp_path))
    assert features_module.default_features_folder() == tmp_path / "features"
