"""Accuracies that a probe's trainings imply for others, and the rows that follow from them."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from planner.recommendation.after_probe import carried_accuracy, corrected_score, remake_front
from planner.recommendation.answer import EQUAL_SCORES
from planner.recommendation.checks import CheckedCandidate, CheckOutcome
from planner.recommendation.named_rows import answer_rows, probe_rows
from planner.recommendation.probe_front import ProbeOutcome
from planner.recommendation.ranking import Question
from planner.scoring.published_tables import log_odds, method_effects
from planner.scoring.table_errors import difference_error
from planner.search.problem import TrialResult
from planner.training.probe_records import BackboneRules, LearnerRule, ProbeRule
from planner.training.probe_statistics import LearnerEstimate
from profiler.units import GIB, DeviceBytes
from profiler.workload import Candidate, Workload

VIT = "vit_small_patch16_224"
FEW = 1000
RULE = LearnerRule(device="cpu", has_batch_norm=False)


def load(method: str, rank: int | None = None, **changes: Any) -> Workload:
    return Workload(method=method, rank=rank, num_classes=10, **{"model": VIT, **changes})


def probe_of(*found: tuple[Workload, float, float], rule: ProbeRule = RULE) -> ProbeOutcome:
    """Return a probe with (workload, accuracy, probability of being near the best)."""
    estimates = {
        rule.name(workload): LearnerEstimate(
            learner=rule.name(workload), rate_factor=1.0, accuracy=accuracy, expected=accuracy,
            low=accuracy - 0.02, high=accuracy + 0.02, steps=100, seeds=1, best=near,
            near_best=near,
        )
        for workload, accuracy, near in found
    }  # fmt: skip
    return ProbeOutcome(
        estimates=estimates, setting=None, rule=rule, runs=len(found), earlier_runs=0, seconds=1.0,
        notes=(), workloads={rule.name(workload): workload for workload, *_ in found},
    )  # fmt: skip


def row(workload: Workload, *, score: float = 0.0, seconds: float = 1.0) -> TrialResult:
    return TrialResult(
        candidate=Candidate(workload=workload),
        assignment={"method": workload.method, "micro_batch": workload.micro_batch},
        score=score,
        cost=seconds,
        peak_bytes=GIB,
        device_bytes=DeviceBytes(GIB),
        step_seconds=seconds,
        energy_joules=seconds,
        reason="",
    )


QUESTION = Question(budget_bytes=DeviceBytes(2 * GIB), train_images=FEW)


def test_an_untrained_method_has_the_published_difference_and_its_error() -> None:
    probe = probe_of((load("lora", 8), 0.9, 0.9))
    got = carried_accuracy(probe, load("head"), train_images=FEW)
    assert got is not None
    assert got.value is not None
    effects = method_effects("vit", "few")
    expected = log_odds(0.9) + effects["head"] - effects["lora"]
    assert log_odds(got.value) == pytest.approx(expected)
    assert (got.kind, got.coverage) == ("prior", 0.8)
    assert got.low is not None
    assert got.high is not None
    # 80 % of a normal distribution lie within 1.2816 deviations
    own = (log_odds(0.92) - log_odds(0.88)) / (2 * 1.2816)
    half = 1.2816 * math.hypot(own, difference_error().deviation)
    assert log_odds(got.high) - log_odds(got.value) == pytest.approx(half, rel=1e-3)
    assert log_odds(got.value) - log_odds(got.low) == pytest.approx(half, rel=1e-3)
    assert "not trained here" in got.reason


def test_another_rank_and_an_equated_method_have_the_accuracy_of_the_trained_one() -> None:
    probe = probe_of((load("lora", 8), 0.9, 0.9), (load("head"), 0.5, 0.0))
    for other in (load("lora", 4), load("dora", 8)):
        got = carried_accuracy(probe, other, train_images=FEW)
        assert got is not None
        assert got.value == pytest.approx(0.9, abs=0.001)
        assert "another rank" in got.reason


def test_nothing_follows_for_methods_without_a_comparison() -> None:
    probe = probe_of((load("lora", 8), 0.9, 0.9))
    assert carried_accuracy(probe, load("bn_head"), train_images=FEW) is None
    assert carried_accuracy(probe_of(), load("lora", 8), train_images=FEW) is None


def test_an_untrained_method_never_stands_above_a_trained_one() -> None:
    probe = probe_of((load("full"), 0.9, 0.9))  # published: lora is above full by 0.3
    assert corrected_score(probe, load("full"), FEW) == 0
    assert corrected_score(probe, load("lora", 8), FEW) == pytest.approx(-2 * EQUAL_SCORES)
    assert (
        corrected_score(probe, load("bn_head"), FEW) < corrected_score(probe, load("head"), FEW) < 0
    )


def test_a_probe_gets_every_method_that_learns_in_a_way_of_its_own() -> None:
    methods = ("lora", "dora", "adaptformer", "full", "head", "bitfit", "ssf", "vpt_shallow")
    rows = [row(load(m, 8 if m in ("lora", "dora") else None), score=-i) for i, m in
            enumerate(methods)]  # fmt: skip
    named = {r.candidate.workload.method for r in answer_rows(rows, QUESTION)}
    probed = {r.candidate.workload.method for r in probe_rows(rows, QUESTION)}
    assert len(named) < len(methods)
    assert set(methods) - {"dora"} <= probed


def test_the_front_is_made_again_of_the_methods_that_the_probe_found_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The published order puts full last; the probe finds it best: its rows come in."""
    results = [
        row(load(method, None, micro_batch=size), score=score, seconds=1.0 + 0.1 * size)
        for method, score in (("ssf", 1.0), ("full", -1.0), ("head", -2.0))
        for size in (4, 16)
    ]

    def replayed(request: Any, rows: list[TrialResult], *args: Any, **options: Any) -> Any:
        assert len(options["known"]) == 3
        found = [CheckedCandidate(result=r, prediction=None) for r in answer_rows(rows, QUESTION)]
        return CheckOutcome(passed=tuple(found), dropped=())

    monkeypatch.setattr("planner.recommendation.after_probe.replay_front", replayed)
    probe = probe_of((load("ssf"), 0.7, 0.0), (load("full"), 0.9, 0.95), (load("head"), 0.6, 0.0))
    first = CheckOutcome(
        passed=tuple(CheckedCandidate(result=r, prediction=None) for r in results[::2]),
        dropped=("one",),
    )

    class Asked:
        balanced_images = FEW

    again = remake_front(Asked(), probe, results, first, cost=None, notify=None)
    best = again.passed[0].candidate.workload
    assert best.method == "full"
    assert again.dropped == ("one",)
    assert len({id(each) for each in again.passed}) == len(again.passed)
    out = results[3]  # of full, at 16 images, which the first replay dropped
    dropped_before = replace(first, refused=(out,))
    again = remake_front(Asked(), probe, results, dropped_before, cost=None, notify=None)
    assert out.assignment not in [each.result.assignment for each in again.passed]
    untouched = remake_front(Asked(), None, results, first, cost=None, notify=None)
    assert untouched is first


def test_rows_that_stay_after_a_probe_have_its_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two methods tie as best, and the answer has room for one: their scores are equal."""
    results = [
        row(load(method, None), score=score)
        for method, score in (("ssf", 1.0), ("full", -1.0), ("head", -2.0))
    ]

    def replayed(request: Any, rows: list[TrialResult], *args: Any, **options: Any) -> Any:
        best = max(rows, key=lambda each: (each.score, each.candidate.workload.method == "ssf"))
        worst = min(rows, key=lambda each: each.score)
        found = [CheckedCandidate(result=r, prediction=None) for r in (best, worst)]
        return CheckOutcome(passed=tuple(found), dropped=())

    monkeypatch.setattr("planner.recommendation.after_probe.replay_front", replayed)
    probe = probe_of((load("ssf"), 0.9, 0.9), (load("full"), 0.9, 0.9), (load("head"), 0.6, 0.0))
    first = CheckOutcome(
        passed=tuple(CheckedCandidate(result=r, prediction=None) for r in results), dropped=()
    )

    class Asked:
        balanced_images = FEW

    again = remake_front(Asked(), probe, results, first, cost=None, notify=None)
    methods = [each.candidate.workload.method for each in again.passed]
    scores = [each.result.score for each in again.passed]
    assert methods == ["ssf", "full", "head"]
    assert scores[:2] == [0.0, 0.0]
    assert scores[2] < 0


def test_backbones_at_equal_points_of_their_spaces_are_different_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = (VIT, "resnet50")
    rules = BackboneRules(rules=dict.fromkeys(models, RULE))
    works = [load("full", model=model) for model in models]
    results = [row(workload) for workload in works]
    assert results[0].assignment == results[1].assignment
    asked: Any = SimpleNamespace(balanced_images=FEW, objective="balanced")
    asked.budget_bytes, asked.trains_pretrained = 2 * GIB, True
    probe = probe_of((works[0], 0.9, 0.9), (works[1], 0.6, 0.0), rule=rules)
    report: Any = None
    passed = tuple(CheckedCandidate(result=result, prediction=report) for result in results)
    monkeypatch.setattr("planner.recommendation.replay_front.needed_bytes", lambda report: GIB)
    none: Any = None
    first = CheckOutcome(passed=passed, dropped=())
    again = remake_front(asked, probe, results, first, cost=none, notify=none)
    found = {each.candidate.workload.model: each.result.score for each in again.passed}
    assert [each.candidate.workload.model for each in again.passed] == [*models]
    assert found[VIT] == 0
    assert found["resnet50"] < 0
    refused = CheckOutcome(passed=passed[1:], dropped=(), refused=(results[0],))
    again = remake_front(asked, probe, results, refused, cost=none, notify=none)
    assert [each.candidate.workload.model for each in again.passed] == ["resnet50"]


def test_a_row_below_the_limit_of_accuracy_does_not_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The probe trained nothing, so the other rows stay as they are."""
    results = [row(load(method), score=-i) for i, method in enumerate(("full", "ssf", "head"))]
    asked: Any = SimpleNamespace(
        balanced_images=FEW, objective="balanced", budget_bytes=2 * GIB, trains_pretrained=True
    )
    none: Any = None
    passed = tuple(CheckedCandidate(result=result, prediction=none) for result in results)
    monkeypatch.setattr("planner.recommendation.replay_front.needed_bytes", lambda report: GIB)
    first = CheckOutcome(passed=passed, dropped=())
    again = remake_front(asked, probe_of(), results[1:], first, cost=none, notify=none)
    assert [each.result for each in again.passed] == results[1:]
    assert remake_front(asked, probe_of(), results, first, cost=none, notify=none) is first
