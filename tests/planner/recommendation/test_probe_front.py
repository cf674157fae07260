"""The probe stage: real short trainings of a small model, kept in the study, and the choice."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import optuna
import pytest
import torch

import planner.training.find_rate
import planner.training.probe
import planner.training.probe_images
from planner.recipe import Recipe
from planner.recommendation.after_probe import accuracy_expected, carried_accuracy
from planner.recommendation.answer import Recommendation, candidate_summary
from planner.recommendation.checks import CheckedCandidate
from planner.recommendation.choose_by_probe import choose_by_probe, preferred, why_chosen
from planner.recommendation.limits import accurate_enough, within_cost_limits
from planner.recommendation.pipeline import recommend
from planner.recommendation.probe_front import (
    ProbeOutcome,
    final_recipe,
    probe_front,
    unused_probe_notes,
)
from planner.recommendation.request import Limits, Request
from planner.recommendation.several_backbones import request_for_backbones
from planner.recommendation.tested_rate import with_tested_rate
from planner.scoring.accuracy_prior import AccuracyEstimate
from planner.search.probe_storage import append_probe_run, read_probe_runs
from planner.search.problem import TrialResult
from planner.search.space import SearchedMethod, Space
from planner.training.probe import StepLadder
from planner.training.probe_records import (
    RATE_FACTORS,
    Learner,
    LearnerRule,
    ProbeSetting,
    planned_steps,
)
from planner.training.probe_statistics import LearnerEstimate
from planner.training.run_options import RunOptions
from planner.workers.run_device import this_device
from planner.workers.run_pool import RunPool, opened_pool
from profiler.devices.table import CPU, device_label
from profiler.errors import UnmetLimitError, UsageError
from profiler.models import backbones
from profiler.placement import Placement
from profiler.records import DeviceLabel, Memory, Parameters, Report, Rung
from profiler.units import GIB, DeviceBytes
from profiler.workload import Candidate, Workload
from tests.in_process import run_in_this_process

SPACE = Space(
    base=Workload(model="test_vit", num_classes=10, image_size=32),
    methods=(SearchedMethod(name="full"), SearchedMethod(name="head")),
    micro_batches=(4, 16),
    effective_batch=16,
    precisions=("fp32",),
    optimizers=("adamw",),
)


def request(folder: Path, **changes: Any) -> Request:
    asked = Request(
        space=SPACE,
        budget_bytes=DeviceBytes(2 * GIB),
        device=device_label("rtx-2060-super", "as the test says"),
        runs_on="cpu",
        run=RunOptions(data="digits", pretrained=False),
        study="probed",
        trials=8,
        storage=f"sqlite:///{folder / 'probed.db'}",
        validations=0,
        has_weights=False,
        out=folder / "plans",
        probe_seconds=300.0,
    )
    return replace(asked, **changes)


def short_ladder(*, most: int, **_: Any) -> StepLadder:
    assert most == 5 * (1295 // 16)  # five epochs, the fewest of a recipe
    return StepLadder(first=2, rungs=2, most=4)


def notify(stage: str, text: str, done: float) -> None:
    assert stage == "probe"
    assert text
    assert 0 <= done <= 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("probed")


@pytest.fixture(autouse=True)
def quick(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUDGETPLAN_CACHE", str(tmp_path_factory.getbasetemp() / "profiles"))
    monkeypatch.setattr("planner.workers.real_run.run_in_process", run_in_this_process)
    monkeypatch.setattr(planner.training.probe_images, "WANTED_HELD_OUT", 0)
    monkeypatch.setattr(planner.training.probe.StepLadder, "of", staticmethod(short_ladder))


@pytest.fixture(scope="module")
def answered(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Recommendation:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BUDGETPLAN_CACHE", str(tmp_path_factory.getbasetemp() / "profiles"))
        patch.setattr("planner.workers.real_run.run_in_process", run_in_this_process)
        patch.setattr(planner.training.probe_images, "WANTED_HELD_OUT", 0)
        patch.setattr(planner.training.probe.StepLadder, "of", staticmethod(short_ladder))
        return recommend(request(folder))


def test_accuracies_of_the_front_are_those_of_trainings_here(answered: Recommendation) -> None:
    assert answered.decided_by == "probe"
    assert answered.probe is not None
    assert answered.probe.runs > 0
    chosen = answered.front[answered.recommended]
    assert chosen.expected.kind == chosen.plan.accuracy.kind == "probe"
    assert chosen.plan.accuracy.value is not None
    assert chosen.plan.accuracy.low is not None
    assert chosen.plan.accuracy.high is not None
    assert chosen.plan.accuracy.low <= chosen.plan.accuracy.value <= chosen.plan.accuracy.high
    assert "the best of the candidates trained here" in answered.reason
    estimates = [
        answered.probe.estimate_of(entry.plan.candidate.workload) for entry in answered.front
    ]
    assert sum(each.best for each in answered.probe.estimates.values()) == pytest.approx(1)
    assert estimates[answered.recommended] is not None


def test_the_answer_in_json_has_the_probe(answered: Recommendation) -> None:
    data = json.loads(json.dumps(answered.to_json(), allow_nan=False))
    assert len(data["probe"]["entries"]) == len(data["front"])
    assert data["probe"]["setting"]["held_out_images"] == 143
    assert data["decided_by"] == "probe"


def test_runs_are_in_the_study_and_a_second_answer_goes_on_from_them(
    answered: Recommendation, folder: Path
) -> None:
    storage, front = f"sqlite:///{folder / 'probed.db'}", answered.front
    stored = read_probe_runs(storage, "probed")
    assert answered.probe is not None
    assert len(stored) == answered.probe.runs
    (note,) = unused_probe_notes(request(folder, probe_seconds=None), storage)
    assert f"holds {len(stored)} short trainings" in note
    assert "--probe-minutes" in note
    assert unused_probe_notes(request(folder), storage) == ()
    damaged = dict(stored[0]) | {"right": "not bits"}
    append_probe_run(storage, "probed", "0" * 24, damaged)
    checked = [CheckedCandidate(result=e.result, prediction=e.plan.prediction) for e in front]
    with opened_pool(storage, "probed", device=this_device("cpu"), at_once=1) as pool:
        again = probe_front(request(folder, probe_seconds=300.0), checked, pool, notify)
    assert again is not None
    assert again.earlier_runs == len(stored)
    assert again.runs == len(stored)
    assert again.setting == answered.probe.setting
    with sqlite3.connect(folder / "probed.db") as database:
        (trials,) = database.execute(
            "SELECT COUNT(*) FROM trials JOIN studies USING (study_id) WHERE study_name = 'probed'"
        ).fetchone()
    assert trials == answered.trials


def test_random_weights_in_place_of_pretrained_ones_are_not_probed(folder: Path) -> None:
    run = RunOptions(data="digits", pretrained=True)
    outcome = probe_front(request(folder, run=run), [], None, notify)
    assert outcome is not None
    assert "nothing was probed" in outcome.notes[0]
    assert choose_by_probe([], outcome, objective="balanced") is None


def test_two_backbones_are_compared_on_the_same_images(tmp_path: Path) -> None:
    weights, storage = tmp_path / "vit.pt", f"sqlite:///{tmp_path / 'pair.db'}"
    whole = backbones.build("test_vit", num_classes=10, image_size=32, device="cpu")
    torch.save(whole.state_dict(), weights)

    def part(model: str, study: str | None) -> Request:
        base = Workload(model=model, num_classes=10, image_size=32)
        file = weights if model == "test_vit" else None
        return request(
            tmp_path,
            space=replace(SPACE, base=base),
            run=RunOptions(data="digits", pretrained=False, weights=file),
            has_weights=file is not None,
            study=study,
        )

    models = ["test_vit", "test_resnet"]
    both = request_for_backbones(models, part, study="pair", storage=storage, out=tmp_path)
    # runs of all backbones are kept in one study, whatever the order of the question
    optuna.create_study(study_name="pair-test_resnet", storage=storage)
    loads = [SPACE.base.replace(model=m, method="head", micro_batch=16) for m in models]
    checked = [SimpleNamespace(candidate=Candidate(workload=each)) for each in loads]
    with opened_pool(storage, "pair", device=this_device("cpu"), at_once=1) as pool:
        found = probe_front(both, cast(Any, checked), pool, notify)
    assert found is not None
    assert found.setting is not None
    assert found.setting.model == "test_resnet, test_vit"
    first, second = found.setting.weights.split("; ")
    assert (first, second[:5]) == ("random", "file ")
    estimates = [found.estimate_of(load) for load in loads]
    assert [each and each.learner.split()[0] for each in estimates] == models
    assert found.estimate_of(loads[0]) != found.estimate_of(loads[1])
    assert len(read_probe_runs(storage, "pair-test_resnet")) == found.runs
    recipes = {each.model: final_recipe(both, found, each).weights for each in loads}
    assert recipes == {"test_vit": "pretrained", "test_resnet": "random"}
    # a training on one backbone says nothing of the other
    only = replace(found, workloads={n: w for n, w in found.workloads.items() if w == loads[0]})
    assert carried_accuracy(only, loads[0].replace(rank=None), train_images=1000) is not None
    assert carried_accuracy(only, loads[1], train_images=1000) is None


# ---- the learning-rate test ----------------------------------------------------------------------


def test_learning_rates_are_tried_for_the_recommended_plan(
    answered: Recommendation, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner.training.find_rate, "RATE_STEPS", 2)
    url = f"sqlite:///{folder / 'probed.db'}"
    with opened_pool(url, "probed", device=this_device("cpu"), at_once=1) as pool:
        try_learning_rates(answered, folder, pool)


def try_learning_rates(answered: Recommendation, folder: Path, pool: RunPool) -> None:
    entries, index = answered.front, answered.recommended
    given = {
        "index": index,
        "probe": None,
        "pool": pool,
        "notify": lambda stage, text, done: said.append(stage),
    }
    said: list[str] = []
    unasked, _ = with_tested_rate(request(folder), entries, **given)
    assert unasked == entries  # nothing was measured here, so its cost is not known
    assert said == []
    asked = request(folder, find_lr=True)
    tested, (note,) = with_tested_rate(asked, entries, **given)
    assert set(said) == {"learning rate"}
    recipe, before = tested[index].plan.recipe, entries[index].plan.recipe
    assert recipe is not None
    assert before is not None
    ratio = recipe.learning_rate / before.learning_rate
    assert any(ratio == pytest.approx(factor) for factor in RATE_FACTORS)
    assert all(f"{before.learning_rate * factor:.2g}: " in note for factor in RATE_FACTORS)
    assert [e for e in tested if e.file != entries[index].file] == [
        e for e in entries if e.file != entries[index].file
    ]
    # A probe tries rates itself, and a refusal is a refusal.
    probed = given | {"probe": answered.probe}
    assert with_tested_rate(asked, entries, **probed) == (entries, ())
    assert with_tested_rate(request(folder, find_lr=False), entries, **given) == (entries, ())


# ---- the choice ----------------------------------------------------------------------------------


def estimate(best: float, near: float, **changes: Any) -> LearnerEstimate:
    made = LearnerEstimate(
        learner="a", rate_factor=1.0, accuracy=0.9, expected=0.9, low=0.88, high=0.92, steps=100,
        seeds=1,
        best=best, near_best=near,
    )  # fmt: skip
    return replace(made, **changes)


def report(joules: float | None, seconds: float) -> Report:
    return Report(
        candidate=Candidate(workload=SPACE.base, placement=Placement()),
        device=DeviceLabel(name="cpu", full_name="CPU", kind="cpu"),
        rung=Rung.COMPOSED,
        memory=Memory(peak_bytes=1),
        flops=None,
        step_seconds=seconds,
        energy_joules=joules,
        parameters=Parameters(total=1, trainable=1),
    )


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (80, "after as many epochs as the longest plan has"),
        (79, "carried on to the epochs of the longest plan"),
    ],
)
def test_an_accuracy_is_said_to_be_of_the_plan_s_epochs_on_the_images_of_the_probe(
    steps: int, words: str
) -> None:
    """A plan of 8 epochs on 400 images has 96 steps of 32, and on the probe's 320 images 80."""
    setting = ProbeSetting(
        data="d", weights="random", model="test_vit", image_size=32, train_images=320,
        held_out_images=80, device="cpu", seed=0,
    )  # fmt: skip
    workload = SPACE.base.replace(micro_batch=32, accumulation=1)
    recipe = Recipe(learning_rate=1e-3, epochs=8, source="test")
    rule = LearnerRule(device="cpu", has_batch_norm=False)
    learner = Learner(
        name=rule.name(workload), candidate=Candidate(workload=workload), recipe=recipe
    )
    outcome = ProbeOutcome(
        estimates={learner.name: estimate(1.0, 1.0, learner=learner.name, steps=steps)},
        setting=setting, rule=rule, runs=1, earlier_runs=0, seconds=1.0, notes=(),
        planned_steps=planned_steps([learner], setting),
    )  # fmt: skip
    expected = outcome.expected_accuracy(workload)
    assert expected is not None
    assert words in expected.reason
    assert f"after {steps} steps here on 320 images" in expected.reason


def test_the_objective_decides_between_candidates_that_count_as_equal() -> None:
    estimates = [estimate(0.6, 0.9), estimate(0.35, 0.7), estimate(0.05, 0.1), None]
    reports = [report(3.0, 1.0), report(2.0, 2.0), report(1.0, 0.5), report(0.5, 0.1)]

    def chosen(objective: Any, eligible: range = range(4)) -> int | None:
        return preferred(estimates, reports, objective, eligible=eligible)

    assert chosen("balanced") == chosen("energy") == 1
    assert chosen("time") == chosen("accuracy") == 0
    assert chosen("balanced", range(2, 4)) == 2
    assert chosen("balanced", range(3, 4)) is None


def test_a_candidate_that_counts_as_equal_is_not_said_to_be_the_least_likely() -> None:
    leader, equal = estimate(0.98, 1.0, learner="lora"), estimate(0.0, 0.7, learner="bn_head")
    assert why_chosen([leader, equal], 0).startswith("with a probability of 98 % the best")
    assert why_chosen([leader, equal], 1).startswith("within one point of lora, the best with 98 %")
    far = estimate(0.02, 0.1, learner="head")  # the leader misses a limit, say
    assert why_chosen([leader, far], 1).startswith("with a probability of 2 % the best")


def test_nothing_is_preferred_among_learners_that_all_diverged() -> None:
    estimates = [estimate(0.0, 0.0, diverged=True), estimate(0.0, 0.0, diverged=True), None]
    reports = [report(3.0, 1.0), report(2.0, 2.0), report(1.0, 0.5)]
    for objective in ("balanced", "energy", "time", "accuracy"):
        assert preferred(estimates, reports, objective, eligible=range(3)) is None
    estimates[0] = estimate(0.1, 0.1)
    assert preferred(estimates, reports, "energy", eligible=range(3)) == 0


# ---- limits --------------------------------------------------------------------------------------


def test_limits_of_time_and_energy_name_the_least_that_is_needed(
    answered: Recommendation, folder: Path
) -> None:
    front = [entry.result for entry in answered.front]
    least = min(result.step_seconds or 0 for result in front)
    recipe = answered.front[0].plan.recipe
    assert recipe is not None
    steps = recipe.epochs * (1295 // 16)
    limit = 1.0001 * least * steps / 3600

    def within(rows: Sequence[TrialResult], **limits: float) -> list[TrialResult]:
        cost: Any = SimpleNamespace(device=CPU)  # that of the rows is not read without levers
        return within_cost_limits(request(folder, levers=(), limits=Limits(**limits)), rows, cost)

    kept = within(front, max_hours=limit)
    assert {result.step_seconds for result in kept} == {least}
    with pytest.raises(UnmetLimitError, match=f"least is {least * steps / 3600:.3g} hours"):
        within(front, max_hours=limit / 2)
    with pytest.raises(UnmetLimitError, match="kWh"):
        within(front, max_kwh=1e-12)
    unknown = [replace(result, energy_joules=None) for result in front]
    with pytest.raises(UsageError, match="power of this device is not known"):
        within(unknown, max_kwh=1.0)


def test_an_accuracy_that_nothing_reaches_is_refused(
    answered: Recommendation, folder: Path
) -> None:
    known = [entry for entry in answered.front if entry.expected.value is not None]
    values = sorted(entry.expected.value or 0 for entry in known)
    expected = {id(entry.result): entry.expected for entry in answered.front}
    rows = [entry.result for entry in answered.front]
    enough = request(folder, limits=Limits(min_accuracy=values[-1]))
    kept = accurate_enough(enough, rows, lambda row: expected[id(row)])
    assert {expected[id(row)].value for row in kept.passed} == {values[-1]}
    again = accurate_enough(
        enough, rows, lambda row: accuracy_expected(enough, answered.probe, row.candidate.workload)
    )
    assert again == kept
    high = request(folder, limits=Limits(min_accuracy=0.9999))
    with pytest.raises(UnmetLimitError) as refused:  # after a probe, too
        accurate_enough(high, rows, lambda row: expected[id(row)])
    best = max(known, key=lambda entry: entry.expected.value or 0)
    assert best.expected.kind == "probe"
    assert f"{100 * values[-1]:.1f} % ({100 * (best.expected.low or 0):.1f} to" in str(
        refused.value
    )
    assert candidate_summary(best.plan.candidate) in str(refused.value)
    nothing = AccuracyEstimate(value=None, kind=None, source=None, reason="not known")
    with pytest.raises(UnmetLimitError, match="the probe measured none"):
        accurate_enough(high, rows, lambda row: nothing)
    with pytest.raises(UnmetLimitError, match="--probe-minutes"):
        accurate_enough(replace(high, probe_seconds=None), rows, lambda row: nothing)


@pytest.mark.parametrize("given", [{"min_accuracy": 1.5}, {"max_hours": 0.0}, {"max_kwh": -1.0}])
def test_limits_out_of_their_domain_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Limits(**given)
