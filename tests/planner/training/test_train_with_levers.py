"""Trainings of plans with levers: they learn the same, resume and can be loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from plans import make_plan
from safetensors.torch import load_file
from trainings import StopError, digits, learned, run, same, workload

from planner.training.history import TrainProgress
from planner.training.trained_model import load_trained
from profiler.models.build import build_model

PLAIN = workload(
    model="resnet10t", method="full", rank=None, micro_batch=8, accumulation=2
)  # fmt: skip

FAST = PLAIN.replace(levers=("channels_last", "fused"))


def test_a_training_with_levers_learns_the_same_and_is_loaded_without_them(tmp_path: Path) -> None:
    images = digits(32, train_images=64, test_images=20)
    plain, fast = (
        run(make_plan(load), tmp_path / str(len(load.levers)), images=images, epochs=2)
        for load in (PLAIN, FAST)
    )
    assert [e.loss for e in fast.epochs] == pytest.approx([e.loss for e in plain.epochs], rel=0.02)
    build_model(PLAIN).model.load_state_dict(learned(tmp_path / "2"))
    assert load_trained(tmp_path / "2") is not None
    files = list((tmp_path / "2").rglob("*.safetensors"))
    assert files
    assert all(tensor.is_contiguous() for file in files for tensor in load_file(file).values())


def test_a_resumed_training_with_levers_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    images = digits(32, train_images=64, test_images=20)
    plan = make_plan(FAST)
    run(plan, tmp_path / "straight", images=images)

    def interrupt(progress: TrainProgress) -> None:
        if (progress.epoch, progress.step, progress.reading) == (2, 2, None):
            raise StopError

    with pytest.raises(StopError):
        run(plan, tmp_path / "resumed", images=images, on_progress=interrupt)
    run(plan, tmp_path / "resumed", images=images, resume=True)
    assert same(learned(tmp_path / "resumed"), learned(tmp_path / "straight"))
