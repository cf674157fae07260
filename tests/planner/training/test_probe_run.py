"""The runs of a probe: cached features, levers, and learners that fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from trainings import digits, workload

from planner.recipe import Recipe
from planner.training.frozen_units import FrozenUnits
from planner.training.probe_images import ProbeImages
from planner.training.probe_process import _timed_step
from planner.training.probe_records import Learner, ProbeSetting
from planner.training.probe_run import ProbeRunner
from profiler.workload import Candidate

RECIPE = Recipe(
    learning_rate=1e-3, epochs=1, source="test", augment=False, zero_head=True, weights="random"
)


def learner(method: str, **changes: object) -> Learner:
    load = workload(
        model="test_vit", method=method, rank=None, micro_batch=8, accumulation=1, **changes
    )
    return Learner(name=method, candidate=Candidate(workload=load), recipe=RECIPE)


@pytest.fixture
def runner(tmp_path: Path) -> ProbeRunner:
    images = digits(32, train_images=40, test_images=20)
    train = images.train.select(range(16))
    held_out = replace(images.test.select(range(8)), crop=images.test.crop, mirror=False)
    return ProbeRunner(
        setting=ProbeSetting(
            data="digits", weights="random", model="test_vit", image_size=32,
            train_images=len(train), held_out_images=len(held_out), device="cpu", seed=0,
        ),
        images=ProbeImages(train=train, held_out=held_out),
        weights=None,
        pretrained=False,
        features_folder=tmp_path,
    )  # fmt: skip


@pytest.mark.parametrize("method", ["head", "partial_2", "side"])
def test_cached_features_are_trained_on_with_levers(runner: ProbeRunner, method: str) -> None:
    lever = learner(method, levers=("channels_last",))
    run = runner.run(lever, steps=2, seed=0)
    assert run is not None
    assert run.from_features


def test_a_side_network_reads_all_stored_activations(runner: ProbeRunner) -> None:
    """Its last layer and the classifier start at zero, and no output shows what it reads."""
    units = runner._frozen_part(learner("side"))
    assert isinstance(units, FrozenUnits)
    assert units.keeps_all


def test_the_memory_holds_the_features_of_one_learner(runner: ProbeRunner) -> None:
    for method in ("head", "partial_2"):
        assert runner.run(learner(method), steps=1, seed=0) is not None
        assert list(runner._features) == [method]


def test_a_check_that_fails_means_no_cached_features(
    runner: ProbeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object) -> None:
        raise NotImplementedError("no such operation")

    monkeypatch.setattr(FrozenUnits, "of", fail)
    assert not runner.has_features(learner("side"))


class OneBroken:
    """A runner in which the steps of some learners fail."""

    def __init__(self, *broken: str) -> None:
        self.broken = broken

    def has_features(self, learner: Learner) -> bool:
        return learner.name == "head"

    def seconds_per_step(self, learner: Learner) -> float:
        if learner.name in self.broken:
            raise NotImplementedError(f"no operation for {learner.name}")
        return {"head": 1.0, "side": 2.0, "full": 3.0}[learner.name]


def test_a_step_is_timed_of_a_learner_that_takes_one() -> None:
    request = SimpleNamespace(learners=[learner(name) for name in ("head", "side", "full")])

    def timed(*broken: str) -> float:
        return _timed_step(cast(Any, request), cast(Any, OneBroken(*broken)))

    assert timed() == 2
    assert timed("side") == 3
    assert timed("side", "full") == 1
    with pytest.raises(NotImplementedError, match="for head"):
        timed("side", "full", "head")
