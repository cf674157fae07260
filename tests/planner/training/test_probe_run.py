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
from planner.search.probe_storage import append_probe_run
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
    runner_at,
)
from planner.training.probe_records import Learner, ProbeRun, ProbeSetting
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


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProbeRequest:
    monkeypatch.setenv("BUDGETPLAN_CACHE", str(tmp_path / "cache"))
    url = f"sqlite:///{tmp_path / 'study.db'}"
    optuna.create_study(storage=url, study_name="probe")
    return ProbeRequest(
        learners=(learner("full", image_size=128),), data="digits", device="cpu", seed=0,
        weights={}, pretrained=False, seconds=1e4, storage=url, study="probe",
    )  # fmt: skip


def stored_run(of: Learner, setting: ProbeSetting, **changes: Any) -> ProbeRun:
    given: dict[str, Any] = {
        "setting": setting, "learner": of.name, "rate_factor": 1.0, "learning_rate": 1e-3,
        "seed": 0, "steps": 20, "seconds": 1.0, "recipe": of.recipe_hash,
        "right": "0" * -(-setting.held_out_images // 4),
    }  # fmt: skip
    return ProbeRun(**given | changes)


@pytest.mark.parametrize(
    ("change", "size"),
    [
        ({}, 64),
        ({"data": "another"}, 128),
        ({"weights": "another"}, 128),
        ({"device": "cuda"}, 128),
        ({"seed": 1}, 128),
        ({"train_images": 7}, 128),
        ({"held_out_images": 8}, 128),
    ],
)
def test_stored_runs_fix_the_image_size_if_their_setting_is_otherwise_that_of_the_probe(
    change: dict[str, Any], size: int, asked: ProbeRequest
) -> None:
    setting = replace(runner_at(asked, 64).setting, **change)
    run = stored_run(asked.learners[0], setting)
    assert _runner_of(asked, [run])[0].setting.image_size == size


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({}, True),
        ({"epochs": 9, "source": "another", "selects_epoch": False}, True),
        ({"learning_rate": 5e-3}, False),
        ({"layer_decay": 0.9}, False),
        (None, False),
    ],
)
def test_stored_runs_count_if_their_recipe_is_that_of_the_probe(
    changes: dict[str, Any] | None, counts: bool, asked: ProbeRequest
) -> None:
    """An earlier version stored no recipe: its runs stay in the study and do not count."""
    (now,) = asked.learners
    setting = runner_at(asked, 64).setting
    if changes is None:
        run = stored_run(now, setting, recipe="")
    else:
        run = stored_run(replace(now, recipe=replace(RECIPE, **changes)), setting)
    append_probe_run(asked.storage, asked.study, run.key, run.to_json())
    found = run_probe(msgspec.structs.replace(asked, seconds=1e-3), lambda text, done: None)
    assert found.earlier_runs == counts
    assert (run in found.runs) == counts
    key = runner_at(asked, 64).key_of(now, steps=20, seed=0, rate_factor=1.0)
    assert (run.key == key) == counts  # by which a learning-rate test finds its runs


class KnownFeatures:
    """A runner of some learners with cached features, on so many images that plans are long."""

    setting = SimpleNamespace(train_images=100_000)

    def has_features(self, learner: Learner) -> bool:
        return learner.name == "head"


@pytest.mark.parametrize(
    ("slow", "quick", "needed_steps"),
    [
        # rungs of 50 and 100 steps: 100 each, and three times as much for rates and seeds
        (2, 0, 500),
        (1, 0, 250),
        (4, 0, 1000),
        # rungs of 25, 50 and 100 steps for 8, 4 and 2 learners
        (8, 0, 1200),
        # rungs from 20 steps, the fewest: 20, 40, 80, 160, 320
        (20, 0, 3200),
        # learners with cached features take no time
        (2, 6, 500),
    ],
)
def test_a_size_is_affordable_at_which_the_last_rung_has_enough_steps(
    slow: int, quick: int, needed_steps: int
) -> None:
    """A step takes 0.5 s at 64 px and 2 s at 128."""
    learners = [learner("full")] * slow + [learner("head")] * quick

    def size_for(seconds: float) -> int:
        request = SimpleNamespace(learners=learners, seconds=seconds)
        return _affordable_size(
            cast(Any, request), cast(Any, KnownFeatures()), sizes=(128, 64), smallest_seconds=0.5
        )

    assert size_for(2.0 * needed_steps) == 128
    assert size_for(2.0 * needed_steps - 1) == 64


def test_a_size_is_affordable_at_which_short_plans_are_compared_at_their_length() -> None:
    """Of 40 steps, the rungs of two learners have 20 and 40: 200 steps in all."""
    runner = SimpleNamespace(
        setting=SimpleNamespace(train_images=320), has_features=lambda _: False
    )
    request = SimpleNamespace(learners=[learner("full")] * 2, seconds=400.0)
    given = {"sizes": (128, 64), "smallest_seconds": 0.5}
    assert _affordable_size(cast(Any, request), cast(Any, runner), **cast(Any, given)) == 128
    request.seconds = 399.0
    assert _affordable_size(cast(Any, request), cast(Any, runner), **cast(Any, given)) == 64
