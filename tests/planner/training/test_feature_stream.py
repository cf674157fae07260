"""The extraction of features streams: its tensors need no more memory for more images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from trainings import digits, workload

from planner.training.features import CHUNK_IMAGES, cached_features, frozen_classifier
from planner.training_free.features import joined_rows
from profiler.device_rules.cpu_allocator import peak_during
from profiler.models.build import build_model


def test_more_images_need_no_more_tensors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(workload(model="test_resnet", method="head", rank=None))
    model.model.train()
    some = digits(32, train_images=40, test_images=20).test
    few = torch.stack([some[i][0] for i in range(4)])
    classifier = frozen_classifier(model, few)
    assert classifier is not None

    def peak(count: int, folder: str) -> int:
        many = some.select([i % 20 for i in range(count)])
        return peak_during(
            lambda: None,
            lambda: cached_features(model, classifier, many, folder=tmp_path / folder),
        )

    first = peak(64, "warm")  # the first run also sets libraries up
    small, large = peak(64, "small"), peak(64 + CHUNK_IMAGES, "large")
    assert small <= first
    # a file of features is joined from its batches, so a whole file has more rows than a part
    features = classifier.in_features
    assert large - small <= 2 * 4 * features * (CHUNK_IMAGES - 64)


def test_rows_are_joined_without_a_second_copy_of_all() -> None:
    chunks = [np.full((n, 3), i, dtype=np.float32) for i, n in enumerate((2, 5, 1))]
    expected = np.concatenate(chunks)
    assert np.array_equal(joined_rows(chunks), expected)
    assert chunks == []
