"""The named rows of an answer: each note is true of its row among the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planner.plan import Accuracy, Plan
from planner.recommendation.alternatives import named_alternatives
from planner.recommendation.answer import Alternative, FrontEntry
from planner.recommendation.checks import CheckedCandidate
from planner.recommendation.choose import ChosenEntry, choose
from planner.recommendation.objective import CHOICE_OBJECTIVES, Objective
from planner.recommendation.ranking import Question
from planner.scoring.accuracy_prior import AccuracyEstimate
from planner.search.problem import TrialResult
from profiler.devices.table import device_label
from profiler.records import Memory, OwnerBytes, Parameters, Report, Rung
from profiler.units import GIB, DeviceBytes
from profiler.workload import Candidate, Workload

QUESTION = Question(budget_bytes=DeviceBytes(2 * GIB), train_images=1000)
VIT, RESNET = "vit_small_patch16_224", "resnet18"
NONE = "none was found"


def entry(
    method: str,
    *,
    seconds: float = 1.0,
    gib: float = 1.0,
    score: float = 1.0,
    model: str = VIT,
    **workload: Any,
) -> FrontEntry:
    """Return a row of an answer with a step of given time and memory."""
    candidate = Candidate(workload=Workload(model=model, method=method).replace(**workload))
    need = DeviceBytes(int(gib * GIB))
    report = Report(
        candidate=candidate,
        device=device_label("rtx-2060-super", ""),
        rung=Rung.REPLAYED,
        memory=Memory(
            peak_bytes=need, reserved_bytes=need, device_bytes=need, at_peak=OwnerBytes()
        ),
        flops=None,
        step_seconds=seconds,
        energy_joules=100 * seconds,
        parameters=Parameters(total=1, trainable=1),
    )
    result = TrialResult(
        candidate=candidate,
        assignment={},
        score=score,
        cost=100 * seconds,
        peak_bytes=need,
        device_bytes=need,
        step_seconds=seconds,
        energy_joules=100 * seconds,
        reason="",
    )
    accuracy = Accuracy(value=None, source=NONE, kind="none")
    return FrontEntry(
        plan=Plan(
            candidate=candidate,
            prediction=report,
            accuracy=accuracy,
            budget_bytes=QUESTION.budget_bytes,
        ),
        file=Path("plan.json"),
        result=result,
        expected=AccuracyEstimate(value=None, kind=None, source=None, reason=NONE),
    )


def named(*entries: FrontEntry, question: Question = QUESTION) -> dict[str, Alternative]:
    """Return the alternatives by name; the first row is recommended, those of its score equal."""
    top = entries[0].result.score
    ties = tuple(i for i, each in enumerate(entries) if i and each.result.score == top)
    choice = ChosenEntry(index=0, reason="", ties=ties, decided_by="cost")
    found = named_alternatives(
        entries, choice, {}, question=question, searched=[e.result for e in entries]
    )
    return {each.name: each for each in found}


def test_the_fastest_of_rows_that_are_nearly_as_fast_is_not_called_the_least() -> None:
    fastest = named(entry("lora", rank=8, seconds=1.029), entry("side", rank=8, seconds=1.0))
    assert fastest["fastest"].index == 0
    assert "within 3% of the least time an image" in fastest["fastest"].note


@pytest.mark.parametrize("objective", CHOICE_OBJECTIVES)
def test_the_smallest_needs_the_least_of_its_equals_for_any_objective(objective: Objective) -> None:
    slow = entry("side", rank=8, seconds=2.5, gib=0.98)
    worse = entry("head", gib=0.1, score=0.0)
    question = replace(QUESTION, objective=objective)
    found = named(entry("lora", rank=8), slow, worse, question=question)["smallest"]
    assert found.index == 1
    assert "the least of its equals" in found.note


def test_rows_are_compared_by_the_numbers_of_their_replay() -> None:
    """A row that was composed as the fastest is not, if its replay is slower."""
    shown = entry("full", seconds=1.05, gib=0.5)
    composed = replace(shown.result, step_seconds=0.9, device_bytes=DeviceBytes(GIB))
    checked = CheckedCandidate(result=composed, prediction=shown.plan.prediction)
    assert checked.replayed_result == replace(shown.result, score=composed.score)
    unknown = replace(shown.plan.prediction, step_seconds=None, energy_joules=None)
    kept = CheckedCandidate(result=composed, prediction=unknown).replayed_result
    assert (kept.step_seconds, kept.device_bytes) == (0.9, GIB // 2)


def test_the_reason_is_that_of_the_replayed_numbers() -> None:
    """Composed, the chosen row costs a fifth less than the best known one; replayed 40 % less."""
    lora, other = entry("lora", rank=8), entry("adaptformer", rank=8, seconds=0.6)
    lora = replace(lora, result=replace(lora.result, assignment={"method": "lora"}))
    other = replace(other, result=replace(other.result, assignment={"method": "adaptformer"}))
    composed = replace(other.result, step_seconds=0.8, energy_joules=80.0)
    choice = choose([lora, other], question=QUESTION, searched=[lora.result, composed])
    assert choice.index == 1
    assert "40 % less" in choice.why


def test_the_fastest_is_so_for_an_image_not_for_a_step() -> None:
    """A step of 32 images in 2 s is the faster one, though a step of 8 takes 1 s."""
    found = named(
        entry("lora", rank=8, seconds=1.0, micro_batch=8),
        entry("side", rank=8, seconds=2.0, micro_batch=32),
    )
    assert found["fastest"].index == 1
    assert found["fastest"].note.startswith("2 s a step, ")
    assert "least time an image" in found["fastest"].note


def test_no_published_comparison_is_claimed_where_none_was_made() -> None:
    rows = entry("full"), entry("full", micro_batch=8)
    compared = named(*rows)["most accurate"].note
    assert "published comparisons" in compared
    random = named(*rows, question=replace(QUESTION, pretrained=False))["most accurate"].note
    assert "none was compared" in random


def test_the_row_of_full_is_that_of_the_rows_that_are_named() -> None:
    """With several backbones it is that of the better one, not the cheapest."""
    found = named(
        entry("lora", rank=8, score=3.0),
        entry("full", score=2.0, seconds=2.0),
        entry("full", score=0.0, model=RESNET),
    )
    assert found["full"].index == 1


def test_the_reason_by_time_says_which_plan_is_faster_and_why_it_is_not_taken() -> None:
    by_time = replace(QUESTION, objective="time")
    rows = entry("lora", rank=8, seconds=1.02, gib=0.5), entry("lora", rank=8)
    choice = choose(rows, question=by_time)
    assert choice.index == 0
    assert "takes 2.0 % less time, but needs 0.50 GiB more" in choice.why
    assert choice.why in choice.reason
