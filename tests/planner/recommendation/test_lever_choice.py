"""Which levers the rows of an answer take."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from planner.cost.model import CostModel
from planner.recommendation import levers as deciding
from planner.recommendation.build_request import build_request
from planner.recommendation.lever_choice import LeverChoice, parse_levers
from planner.recommendation.levers import (
    LEAST_GAIN,
    LeverOutcome,
    composed_with_levers,
    with_levers,
)
from planner.recommendation.limits import exceeded_limit, within_cost_limits
from planner.recommendation.recipes import plan_recipe
from planner.recommendation.request import Limits
from planner.search.problem import TrialResult
from profiler.devices.table import CPU, device_spec
from profiler.errors import UnknownNameError, UnmetLimitError, UsageError
from profiler.placement import Decision, Placement
from profiler.prediction.lever_effects import LeverEffect
from profiler.prediction.report import predict, report_of
from profiler.records import Report, ValueInterval
from profiler.replay.event_log import EventLog
from profiler.replay.step_replay import replay_step
from profiler.units import DeviceBytes
from profiler.workload import Candidate, Lever, Workload

RTX = device_spec("rtx-3060")

BASE = Workload(
    model="test_resnet", micro_batch=32, image_size=160, num_classes=5, precision="bf16"
)

ENOUGH = 1 << 40


def row_of(candidate: Candidate) -> TrialResult:
    return TrialResult(
        candidate=candidate,
        assignment={"method": candidate.workload.method},
        score=0.0,
        cost=100.0,
        peak_bytes=1,
        device_bytes=DeviceBytes(1),
        step_seconds=2.0,
        energy_joules=4.0,
        reason="",
    )


@cache
def step_log(candidate: Candidate) -> EventLog:
    return replay_step(candidate, device=RTX)


def decided(
    workload: Workload,
    choice: LeverChoice = "auto",
    *,
    budget_bytes: int = ENOUGH,
    placement: Placement | None = None,
    power_limit_watts: float | None = None,
) -> tuple[Report, LeverOutcome]:
    candidate = Candidate(workload=workload, placement=placement or Placement())
    log = step_log(candidate)
    report = report_of(candidate, log, device=RTX, power_limit_watts=power_limit_watts)
    return report, with_levers(
        report, row_of(candidate), choice=choice, budget_bytes=budget_bytes, device=RTX, log=log
    )


def levers_of(outcome: LeverOutcome) -> tuple[Lever, ...]:
    return outcome.report.candidate.workload.levers


def test_a_row_takes_what_is_predicted_to_win_and_says_by_how_much() -> None:
    plain, outcome = decided(BASE)
    assert plain.step_seconds is not None

    def ratio(*levers: Lever) -> float:
        """Predict the whole step with levers, over that without."""
        report = predict(Candidate(workload=BASE.replace(levers=levers)), device=RTX)
        assert report.step_seconds is not None
        return report.step_seconds / plain.step_seconds

    # tf32 changes nothing in 16 bits, so a workload in bf16 refuses it
    alone = {lever: ratio(lever) for lever in ("channels_last", "fused")}
    assert max(alone.values()) < 1 - LEAST_GAIN
    assert levers_of(outcome) == tuple(alone)
    found = {effect.lever: effect.seconds_ratio for effect in outcome.effects}
    assert found == pytest.approx(alone, rel=1e-9)
    assert all(effect.interval.high < 1 for effect in outcome.effects)
    assert outcome.seconds_ratio == pytest.approx(ratio(*alone), rel=1e-9)
    assert outcome.seconds_ratio < min(alone.values())
    row = outcome.result(row_of(plain.candidate))
    assert row.step_seconds == pytest.approx(2.0 * outcome.seconds_ratio)
    assert row.cost == pytest.approx(100.0 * outcome.joules_ratio)
    assert row.candidate == outcome.report.candidate


def test_none_takes_nothing_and_a_list_takes_what_a_row_allows() -> None:
    plain, outcome = decided(BASE, ())
    assert outcome == LeverOutcome(report=plain)
    wanted: tuple[Lever, ...] = ("channels_last", "tf32", "cudnn_benchmark", "compile")
    assert levers_of(decided(BASE, wanted)[1]) == ("channels_last", "cudnn_benchmark", "compile")
    kept = Placement({"layer1.0": Decision.RECOMPUTE})
    assert "compile" not in levers_of(decided(BASE, wanted, placement=kept)[1])


def test_a_row_that_no_longer_fits_takes_none() -> None:
    plain, outcome = decided(BASE)
    need = outcome.report.memory.needed_bytes
    assert need is not None
    assert levers_of(decided(BASE, budget_bytes=need)[1])
    assert decided(BASE, budget_bytes=need - 1)[1] == LeverOutcome(report=plain)
    named = decided(BASE, ("fused",), budget_bytes=1)[1]
    assert named == LeverOutcome(report=plain, left_out=("fused",))


def test_a_row_keeps_its_power_limit() -> None:
    plain, outcome = decided(BASE, power_limit_watts=110)
    assert levers_of(outcome)
    assert outcome.report.power_limit_watts == plain.power_limit_watts == 110
    free = decided(BASE)[1]
    assert outcome.report.energy_joules != free.report.energy_joules


@pytest.mark.parametrize("choice", ["auto", ("channels_last",), ("fused",)])
def test_limits_of_time_and_energy_are_those_of_the_answer_with_levers(choice: LeverChoice) -> None:
    plain, outcome = decided(BASE, choice)
    cost = CostModel(RTX)
    step = cost.estimate(plain.candidate)
    row = replace(
        row_of(plain.candidate),
        step_seconds=step.step_seconds,
        energy_joules=step.energy_joules,
    )
    asked = build_request("test_resnet", budget_bytes=2**31, device="rtx-3060", validations=0)
    asked = replace(asked, levers=choice)
    recipe = plan_recipe(asked, BASE)
    steps = recipe.steps(asked.images_of(recipe), effective_batch=BASE.effective_batch)
    for name, before, after in (
        ("max_hours", plain.step_seconds, outcome.report.step_seconds),
        ("max_kwh", plain.energy_joules, outcome.report.energy_joules),
    ):
        assert before is not None
        assert after is not None
        total = after * steps / (3600 if name == "max_hours" else 3.6e6)
        assert after < 0.99 * before
        enough = replace(asked, limits=Limits(**{name: 1.01 * total}))
        assert within_cost_limits(enough, [row], cost) == [row]
        assert exceeded_limit(enough, outcome.timed_report) is None
        with pytest.raises(UnmetLimitError) as refused:
            within_cost_limits(replace(asked, limits=Limits(**{name: 0.98 * total})), [row], cost)
        least = str(refused.value).partition("the least is ")[2].partition(" ")[0]
        assert float(least) == pytest.approx(total, rel=0.01)
        without = replace(enough, levers=())
        with pytest.raises(UnmetLimitError):
            within_cost_limits(without, [row], cost)


def test_levers_without_a_composed_time_leave_a_row_as_it_is() -> None:
    cost, row = CostModel(RTX), row_of(Candidate(workload=BASE))
    assert composed_with_levers(row, choice=("compile",), cost=cost) == row
    assert composed_with_levers(row, choice=(), cost=cost) == row
    galore = row_of(Candidate(workload=BASE.replace(method="galore", rank=8)))
    found = composed_with_levers(galore, choice="auto", cost=cost)
    assert found.step_seconds is not None
    assert 0 < found.step_seconds < 2


def test_time_that_is_not_predicted_with_levers_is_that_without() -> None:
    plain, outcome = decided(BASE, ("compile",))
    assert levers_of(outcome) == ("compile",)
    assert outcome.report.step_seconds is None
    assert outcome.timed_report == plain
    known = decided(BASE)[1]
    assert known.timed_report == known.report


def test_the_papers_default_and_a_cpu_take_none() -> None:
    paper = BASE.replace(method="lora", rank=8, precision="fp32")
    assert not levers_of(decided(paper, ("fused",))[1])
    candidate = Candidate(workload=BASE.replace(micro_batch=2))
    log = replay_step(candidate, device=CPU)
    report, row = report_of(candidate, log, device=CPU), row_of(candidate)
    outcome = with_levers(report, row, choice="auto", budget_bytes=ENOUGH, device=CPU, log=log)
    assert not levers_of(outcome)
    chosen = ("fused", "cudnn_benchmark")
    outcome = with_levers(report, row, choice=chosen, budget_bytes=ENOUGH, device=CPU, log=log)
    assert levers_of(outcome) == ("fused",)


def test_a_row_is_replayed_once_without_and_once_with_its_levers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replayed: list[tuple[Lever, ...]] = []

    def replay(candidate: Candidate, **options: Any) -> EventLog:
        replayed.append(candidate.workload.levers)
        return replay_step(candidate, **options)

    candidate = Candidate(workload=BASE)
    log = step_log(candidate)
    report, row = report_of(candidate, log, device=RTX), row_of(candidate)
    monkeypatch.setattr("profiler.replay.step_replay.replay_step", replay)
    outcome = with_levers(
        report, row, choice=("channels_last",), budget_bytes=ENOUGH, device=RTX, log=log
    )
    assert replayed == [("channels_last",)]
    assert outcome.report == predict(outcome.report.candidate, device=RTX)


@pytest.mark.parametrize(
    ("ratio", "high", "takes"), [(0.8, 0.99, True), (0.8, 1.0, False), (0.995, 0.999, False)]
)
def test_a_gain_needs_its_whole_interval_and_a_size(
    ratio: float, high: float, *, takes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    effect = LeverEffect(
        lever="fused",
        seconds_ratio=ratio,
        interval=ValueInterval(low=0.5, high=high),
        source="this test",
    )
    monkeypatch.setattr(deciding, "lever_effects", lambda *_, **__: (effect,))
    assert (levers_of(decided(BASE)[1]) == ("fused",)) == takes


def test_galore_has_an_update_of_its_own() -> None:
    galore = BASE.replace(method="galore", rank=8)
    assert "fused" not in levers_of(decided(galore)[1])
    with pytest.raises(UsageError, match="optimizer of its own"):
        predict(Candidate(workload=galore.replace(levers=("fused",))), device=RTX)


def test_words_for_levers() -> None:
    assert parse_levers("auto") == "auto"
    assert parse_levers("none") == parse_levers([]) == ()
    assert parse_levers(" fused, channels_last") == ("channels_last", "fused")
    assert parse_levers(["tf32"]) == ("tf32",)
    with pytest.raises(UnknownNameError, match="fuse"):
        parse_levers("fuse")
    with pytest.raises(UsageError, match="empty"):
        parse_levers(",")


def test_an_effect_is_plain_data() -> None:
    effect = LeverEffect(
        lever="fused",
        seconds_ratio=0.5,
        interval=ValueInterval(low=0.25, high=0.75),
        source="this test",
    )
    assert json.loads(json.dumps(effect.to_json())) == {
        "lever": "fused",
        "seconds_ratio": 0.5,
        "interval": {"low": 0.25, "high": 0.75, "coverage": None},
        "source": "this test",
    }
