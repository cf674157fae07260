"""The runs of a probe: cached features, levers, and learners that fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import optuna
import pytest
from trainings import digits, workload

from planner.recipe import Recipe
from planner.training import features
from planner.training.find_rate import find_rate
from planner.training.frozen_units import FrozenUnits
from planner.training.probe import FEWEST_STEPS
from planner.training.probe_images import ProbeImages
from planner.training.probe_messages import ProbeRequest
from planner.training.probe_process import (
    _affordable_size,
    _runner_of,
    _timed_step,
    run_probe,
)
from planner.training.probe_records import Learner, ProbeSetting
from planner.training.probe_run import ProbeRunner
from profiler.workload import Candidate

RECIPE = Recipe(
    learning_rate=1e-3, epochs=1, source="test", augment=False, zero_head=True, weights="random"
)


def learner(method: str, **changes: object) -> Learner:
    given: dict[str, object] = {"model": "test_vit", "rank": None, "accumulation": 1}
    load = workload(method=method, micro_batch=8, **given | changes)
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


WITH_TWO_CLASSIFIERS = "deit_tiny_distilled_patch16_224"


@pytest.mark.parametrize("model", ["test_vit", WITH_TWO_CLASSIFIERS])
@pytest.mark.parametrize("method", ["head", "partial_2", "side"])
def test_cached_features_are_trained_on_with_levers(
    runner: ProbeRunner, model: str, method: str
) -> None:
    lever = learner(method, model=model, levers=("channels_last",))
    run = runner.run(lever, steps=2, seed=0)
    assert run is not None
    assert run.from_features


@pytest.mark.parametrize("method", ["head", "side"])
def test_the_time_of_a_probe_bounds_the_features_and_keeps_them(
    runner: ProbeRunner, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of 4 images: 4 for the 16 to train on, 2 for the 8 held out."""
    monkeypatch.setattr(features, "CHUNK_IMAGES", 4)
    computed = []
    extract = features._extract

    def counted(built: Any, part: Any, images: Any, forward: Any) -> Any:
        computed.append(len(images))
        return extract(built, part, images, forward)

    monkeypatch.setattr(features, "_extract", counted)
    over = iter([False, False, True])
    assert runner.run(learner(method), steps=1, seed=0, out_of_time=lambda: next(over)) is None
    assert computed == [4, 4]
    assert runner.run(learner(method), steps=1, seed=0) is not None
    assert computed == [4] * 6


@pytest.mark.parametrize("method", ["head", "side"])
def test_timing_a_step_computes_the_features_of_a_step_alone(
    runner: ProbeRunner, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProbeRunner, "_parts", None)
    assert runner.seconds_per_step(learner(method)) > 0
    assert not [*tmp_path.rglob("*.npz")]


def test_the_seconds_of_a_run_leave_out_the_features_that_later_runs_find(
    runner: ProbeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*given: Any, **options: Any) -> Any:
        clock.now += 1000
        return features.cached_features(*given, **options)

    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("planner.training.probe_run.cached_features", slow)
    monkeypatch.setattr("time.perf_counter", lambda: clock.now)
    run = runner.run(learner("head"), steps=1, seed=0)
    assert run is not None
    assert run.seconds < 1000


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


@pytest.mark.parametrize(("plan_size", "seconds"), [(64, 120.0), (128, 2.0)])
def test_a_test_of_learning_rates_decides_nothing_about_a_later_probe(
    plan_size: int, seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test trains at the plan's image size, which can be too slow for a probe on a CPU."""
    monkeypatch.setattr("planner.training.find_rate.RATE_STEPS", 3)
    monkeypatch.setenv("BUDGETPLAN_CACHE", str(tmp_path / "cache"))
    url = f"sqlite:///{tmp_path / 'study.db'}"
    optuna.create_study(storage=url, study_name="rates")
    asked = ProbeRequest(
        learners=(learner("full", image_size=plan_size),),
        data="digits",
        device="cpu",
        seed=0,
        weights={},
        pretrained=False,
        seconds=seconds,
        storage=url,
        study="rates",
    )
    rates = find_rate(asked, lambda text, done: None)
    assert {(run.setting.image_size, run.steps) for run in rates.runs} == {(plan_size, 3)}
    found = run_probe(asked, lambda text, done: None)
    trained = [run for run in found.runs if run not in rates.runs]
    assert trained
    assert {run.setting.image_size for run in trained} == {64}
    assert min(run.steps for run in trained) >= FEWEST_STEPS
    later = msgspec.structs.replace(asked, seconds=1e4)
    assert _runner_of(later, trained)[0].setting.image_size == 64
    assert _runner_of(later, rates.runs)[0].setting.image_size == plan_size


@pytest.mark.parametrize(
    ("learners", "seconds", "size"),
    [
        (2, 600.0, 128),
        (2, 599.0, 64),
        (2, 1.0, 64),
        (1, 600.0, 128),
        (4, 600.0, 64),
        (4, 1200.0, 128),
    ],
)
def test_a_size_is_affordable_whose_longest_runs_have_enough_steps(
    learners: int, seconds: float, size: int
) -> None:
    """A step takes 0.5 s at 64 and 2 s at 128; of two learners, 300 steps are needed in all."""
    request = SimpleNamespace(learners=[learner("full")] * learners, seconds=seconds)
    assert _affordable_size(cast(Any, request), (128, 64), 0.5) == size
