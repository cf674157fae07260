"""Stages of the flow with stand-ins for the work: what they pass on, and what they forgive."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest

import planner.recommendation.replay_front as replaying
import profiler.prediction.report as reports
from planner.recommendation import explain, infeasible, pipeline, real_runs, run_limits
from planner.recommendation.build_request import build_request
from planner.recommendation.levers import LeverOutcome
from planner.recommendation.limits import accurate_enough, exceeded_limit
from planner.recommendation.notes import answer_notes
from planner.recommendation.recipes import plan_recipe
from planner.recommendation.request import Limits, Request
from planner.recommendation.smaller_images import with_smaller_images
from planner.scoring.accuracy_prior import AccuracyEstimate
from planner.search.pareto import HypervolumeStagnation
from planner.training.images.image_set import InputFormat
from planner.training.probe_records import Learner, LearnerRule
from planner.training.run_options import RunOptions
from planner.training_free import options
from profiler.devices.table import device_spec
from profiler.errors import InfeasibleError, InputError, UnmetLimitError, UsageError
from profiler.prediction.report import predict
from profiler.units import GIB
from profiler.workload import Candidate, Workload


@pytest.fixture
def asked() -> Request:
    return build_request(
        "test_vit", budget_bytes=2 * GIB, device="rtx-3060", study="mine", validations=0
    )


@pytest.mark.parametrize(
    ("probe", "in_order"),
    [
        (None, False),
        (SimpleNamespace(estimates={}), False),
        (SimpleNamespace(estimates={"lora": 1}), True),
    ],
)
def test_runs_are_queued_under_the_name_that_the_user_gave(
    probe: Any, in_order: bool, asked: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    seen: dict[str, Any] = {}

    def open_pool(url: str, study: str, **options: Any) -> Any:
        opened.append(study)
        return nullcontext()

    monkeypatch.setattr(pipeline, "opened_pool", open_pool)
    monkeypatch.setattr(pipeline, "run_best", lambda *_, **options: seen.update(options))
    monkeypatch.setattr(pipeline, "best_first", lambda candidates, *_: candidates)
    joint = replace(asked, study="mine-test_vit", joint_study="mine", validations=1)
    pool: Any = "an open pool"
    with pipeline._real_runs(joint, "sqlite://"):
        pipeline._run_best(joint, [], probe, pool, lambda *_: None)
    assert opened == ["mine"]
    # a probe without a training says nothing about the order
    assert seen["in_order"] is in_order


@pytest.mark.parametrize(
    ("limit", "runs", "seconds", "goes_on"),
    [
        (None, 2, 1e6, True),  # a number of runs was asked for
        (None, 3, 0.0, False),
        (90.0, 0, 500.0, True),  # the first runs in any case, also after runs that failed
        (90.0, 1, 45.0, True),  # two would end after 90 s
        (90.0, 1, 46.0, False),
        (90.0, 2, 60.0, True),
        (90.0, 2, 61.0, False),
        (90.0, 3, 3.0, False),
    ],
)
def test_further_candidates_run_if_they_are_expected_to_end_in_time(
    limit: float | None, runs: int, seconds: float, goes_on: bool, asked: Request
) -> None:
    asked = replace(asked, validations=3, validation_seconds=limit)
    assert real_runs._goes_on(asked, runs, seconds) is goes_on


def test_a_number_of_runs_or_workers_have_no_time_limit() -> None:
    def limit(**wish: Any) -> float | None:
        asked = build_request("test_vit", budget_bytes=2 * GIB, device="rtx-3060", **wish)
        return asked.validation_seconds

    assert limit() == 60.0
    assert limit(validations=3) is None
    assert limit(uses_workers=True, storage="sqlite:///unused.db") is None


def test_an_answer_stands_without_the_notes_of_its_study(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Answer:
        notes: tuple[str, ...] = ("first",)

    def fails(answer: Any, url: str) -> None:
        raise InputError("the database is read-only")

    monkeypatch.setattr(pipeline, "annotate", fails)
    answer: Any = Answer()
    notes = pipeline._annotated(answer, "sqlite://").notes
    assert notes[0] == "first"
    assert "no notes" in notes[1] and "read-only" in notes[1]


def test_missing_libraries_are_refused_before_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    for wish in ({"training_free": True}, {"allow_training_free": True}):
        with pytest.raises(InputError, match="training-free"):
            build_request("test_vit", budget_bytes=2 * GIB, **wish)


@pytest.mark.parametrize("value", [-1, 2.5, True, "3"])
@pytest.mark.parametrize(
    "name", ["steps", "effective_batch", "validations", "trials", "image_size"]
)
def test_numbers_are_refused_by_name_before_anything_is_read(name: str, value: object) -> None:
    rule = "at least" if value == -1 else "a whole number"
    wish: Any = {name: value}
    with pytest.raises(UsageError, match=f"^{name} must be {rule}"):
        build_request("test_vit", budget_bytes=2 * GIB, data="/no/such/folder", **wish)


@pytest.mark.parametrize("value", [0, 2.5, True])
def test_a_number_of_steps_or_images_is_whole(value: Any) -> None:
    for call in (
        lambda: RunOptions(data="digits", steps=value),
        lambda: InputFormat(image_size=value, mean=(0.0,) * 3, std=(1.0,) * 3),
        lambda: HypervolumeStagnation(window=value),
    ):
        with pytest.raises(UsageError, match=r"must be (at least 1|a whole number), got"):
            call()


def test_limits_of_time_hold_for_the_plain_step_if_that_with_levers_is_not_predicted(
    asked: Request,
) -> None:
    workload = Workload(model="test_vit", num_classes=10, micro_batch=8, image_size=32)
    device = device_spec("rtx-3060")
    plain = predict(Candidate(workload=workload), device=device)
    compiled = replace(plain, step_seconds=None, energy_joules=None)
    outcome = LeverOutcome(report=compiled, plain_report=plain)
    row: Any = SimpleNamespace(candidate=Candidate(workload=workload), device_bytes=1)
    for hours, passes in ((100.0, True), (1e-9, False)):
        limited = replace(asked, limits=Limits(max_hours=hours))
        assert (replaying._reason_to_drop(limited, row, outcome) is None) == passes
        found: Any = SimpleNamespace(stopped=None, cost_unit="joules", failures=())
        checked: Any = SimpleNamespace(prediction=compiled, validation=None)
        notes = answer_notes(limited, found, [checked])
        assert any("checked without levers" in note for note in notes)


def test_a_limit_of_an_unknown_quantity_is_not_met(asked: Request) -> None:
    workload = Workload(model="test_vit", num_classes=10, micro_batch=8, image_size=32)
    report = predict(Candidate(workload=workload), device=device_spec("rtx-3060"))
    unknown = replace(report, step_seconds=None)
    limited = replace(asked, limits=Limits(max_hours=5))
    assert exceeded_limit(limited, report) is None
    assert (
        exceeded_limit(limited, unknown)
        == "its replayed time is not known, and at most 5 hours are allowed"
    )


def test_rows_are_exchanged_until_one_passes(
    asked: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first rows all need more than composed; a later one is the answer."""
    rows: list[Any] = [
        SimpleNamespace(candidate=number, point=("test_vit", str(number)), score=0.0)
        for number in range(9)
    ]
    needs = SimpleNamespace(result=lambda row: row, report=None, effects=(), left_out=())

    def replayed(request: Any, wanted: Any, *_: Any) -> Any:
        yield from ((row, needs) for row in wanted)

    monkeypatch.setattr(replaying, "answer_rows", lambda waiting, question: waiting[:1])
    monkeypatch.setattr(replaying, "_replayed", replayed)
    monkeypatch.setattr(replaying, "LeverOutcome", SimpleNamespace)
    monkeypatch.setattr(replaying, "candidate_summary", str)
    monkeypatch.setattr(replaying, "needed_bytes", lambda report: 0)
    for last in (6, 2):

        def reason(request: Any, row: Any, report: Any, last: int = last) -> str | None:
            return None if row.candidate >= last else "too large"

        monkeypatch.setattr(replaying, "_reason_to_drop", reason)
        cost: Any = None
        found = replaying.replay_front(asked, rows, cost, lambda *_: None)
        assert [each.result.point[1] for each in found.passed] == [str(last)]
        assert len(found.refused) == last
    monkeypatch.setattr(replaying, "_reason_to_drop", lambda *_: "too large")
    found = replaying.replay_front(asked, rows, cost, lambda *_: None)
    assert (found.passed, len(found.refused)) == ((), 9)


def test_the_expected_accuracy_decides_whatever_it_is_from(asked: Request) -> None:
    rows: Any = [
        SimpleNamespace(
            candidate=Candidate(workload=Workload(model="test_vit", method=method, rank=rank)),
            expected=AccuracyEstimate(value=value, kind=kind, source="s", reason="r"),
        )
        for method, rank, value, kind in (
            ("full", None, 0.5, "probe"), ("head", None, 0.6, "prior"), ("lora", 2, 0.3, "prior"),
            ("lora", 8, 0.58, "prior"), ("bitfit", None, None, None),
        )
    ]  # fmt: skip

    def checked(least: float, **limits: float) -> Any:
        limited = replace(asked, limits=Limits(min_accuracy=least, **limits))
        return accurate_enough(limited, rows, lambda row: cast("Any", row).expected)

    with pytest.raises(UnmetLimitError, match=r"highest expected accuracy is 60\.0 %"):
        checked(0.9)
    with pytest.raises(UnmetLimitError, match="fits and is within the other limits is expected"):
        checked(0.9, max_hours=1.0)
    enough = checked(0.55)
    assert enough.passed == (rows[1], rows[3])
    assert enough.dropped == (
        "full: its expected accuracy is 50.0 %, and 55 % was requested",
        "bitfit: its expected accuracy is not known, and 55 % was requested",
    )


@pytest.mark.parametrize(
    ("smallest", "dropped", "kind"),
    [
        (GIB, ("its replayed training is 3 hours, more than 2 hours",), UnmetLimitError),
        (GIB, (), InfeasibleError),
        (3 * GIB, ("the replay needs 3 GiB",), InfeasibleError),
    ],
)
def test_memory_is_blamed_only_if_it_is_too_small(
    smallest: int,
    dropped: tuple[str, ...],
    kind: type[Exception],
    asked: Request,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = InfeasibleError(budget_bytes=asked.budget_bytes, smallest_bytes=smallest, advice="")
    monkeypatch.setattr(infeasible, "nothing_fits", lambda *_: error)
    found: Any = SimpleNamespace(results=())
    cost: Any = None
    raised = infeasible.none_replayed(asked, found, cost, dropped)
    assert type(raised) is kind
    assert kind is InfeasibleError or dropped[0] in str(raised)


def test_time_limits_of_probes_are_those_under_the_power_limit(asked: Request) -> None:
    workload = Workload(model="test_vit", num_classes=10, micro_batch=64, image_size=160)
    candidate = Candidate(workload=workload)
    learner = Learner(name="full", candidate=candidate, recipe=plan_recipe(asked, workload))
    limited = replace(asked, power_limit_watts=110.0)

    def seconds(request: Request, device: Literal["cpu", "cuda"]) -> float:
        rule = LearnerRule(device=device, has_batch_norm=True)
        report = run_limits._expected_step(request, learner, rule)
        assert report is not None
        assert report.step_seconds is not None
        return report.step_seconds

    assert seconds(limited, "cuda") > seconds(asked, "cuda")
    report = predict(candidate, device=device_spec("rtx-3060"), power_limit_watts=110.0)
    assert seconds(limited, "cuda") == report.step_seconds
    assert seconds(limited, "cpu") == seconds(asked, "cpu")  # a limit of the GPU


def test_variants_of_a_plan_have_its_power_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = Workload(model="test_vit", num_classes=10, image_size=160)
    seen: list[Any] = []

    def predicted(candidate: Candidate, **given: Any) -> Any:
        seen.append(given["power_limit_watts"])
        raise UsageError("far enough")

    monkeypatch.setattr(reports, "predict", predicted)
    plan: Any = SimpleNamespace(
        candidate=Candidate(workload=workload), prediction=SimpleNamespace(power_limit_watts=100.0)
    )
    entry: Any = SimpleNamespace(plan=plan)
    assert with_smaller_images(entry, device=device_spec("rtx-3060")) is None
    explain._replayed_row("fp32", plan.candidate, device_spec("rtx-3060"), plan)
    assert seen == [100.0, 100.0]
