"""training.json: read back equal, refused when it was changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from trainings import STATIC

from planner.training.history import AccuracyReading, LearningRate, TrainResult
from profiler.errors import InputError
from profiler.models.backbones import WeightSource
from profiler.placement import PolicyChoice


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [("seed", "three", "seed"), ("banana", 1, "banana"), ("readings", [{"step": 1}], "readings")],
)
def test_a_record_that_was_changed_by_hand_is_refused(
    tmp_path: Path, key: str, value: object, words: str
) -> None:
    result = TrainResult(
        epochs=(),
        readings=(AccuracyReading(step=1, seconds=1.0, loss=1.0, accuracy=0.5, images=4),),
        learning_rate=LearningRate(value=0.1, warm_up_steps=0, reason="test"),
        seed=1,
        weights=WeightSource(kind="random", detail=""),
        data={},
        placement=STATIC,
        policy=PolicyChoice("every-k", {"k": 3}),
        step_downs=(),
        versions={},
        output=tmp_path,
    )
    assert TrainResult.from_json(result.to_json(), output=tmp_path) == result
    with pytest.raises(InputError, match=words) as caught:
        TrainResult.from_json({**result.to_json(), key: value}, output=tmp_path)
    assert "\n" not in str(caught.value)
