"""Which failures of a run end the question, with stand-ins for the pool and the request."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from planner.recommendation import real_runs
from planner.recommendation.checks import CheckedCandidate
from planner.recommendation.ranking import Question
from planner.recommendation.real_runs import run_best
from planner.search.run_queue import opened_queue
from planner.workers.orders import AnyOrder, RunOrder
from planner.workers.outcomes import (
    DefectError,
    FinishedRun,
    error_outcome,
    read_outcome,
)
from planner.workers.run_device import RunDevice
from planner.workers.worker import work, worker_name
from profiler.errors import BudgetplanError, DeviceError, InputError, MeasurementError, UsageError
from tests.planner.workers.toy_runs import toy_order


class ToyPool:
    """A pool whose runs end in given ways, in their order."""

    at_once = 1

    def __init__(self, outcomes: list[Any]) -> None:
        self.outcomes = outcomes

    def submit(self, order: object) -> str:
        return "key"

    def next_finished(self, on_progress: object) -> tuple[str, Any]:
        return "key", self.outcomes.pop(0)


def ran(
    outcomes: list[Any], monkeypatch: pytest.MonkeyPatch, *, uses_workers: bool
) -> tuple[int, tuple[str, ...], tuple[str, ...]]:
    """Return the number of candidates that passed, the sentences on the others, and the notes."""
    monkeypatch.setattr(real_runs, "_order_of", lambda *given: None)
    monkeypatch.setattr(real_runs, "candidate_summary", lambda candidate: "a row")
    monkeypatch.setattr(Question, "of", lambda request: None)
    result: Any = SimpleNamespace(candidate=toy_order().candidate)
    prediction: Any = None
    row = CheckedCandidate(result=result, prediction=prediction)
    rows = [replace(row, worker=str(number)) for number in range(len(outcomes))]
    request: Any = SimpleNamespace(validations=len(rows), uses_workers=uses_workers)
    pool: Any = ToyPool(outcomes)
    found = run_best(request, rows, pool, lambda *given: None, in_order=True)
    return len(found.passed), found.dropped, found.notes


def passed() -> FinishedRun:
    validation: Any = SimpleNamespace()
    return FinishedRun(validation=validation, host_prediction=None, worker="w")


@pytest.mark.parametrize("error", [InputError("no images"), DeviceError("no GPU")])
def test_what_a_worker_lacks_ends_its_run_alone(
    error: BudgetplanError, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ran([error, passed()], monkeypatch, uses_workers=True)
    assert found == (1, (f"a row: {error}",), ())
    with pytest.raises(type(error)):
        ran([error, error], monkeypatch, uses_workers=True)
    with pytest.raises(type(error)):
        ran([error, passed()], monkeypatch, uses_workers=False)


def test_other_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    left, _, notes = ran([MeasurementError("slow"), passed()], monkeypatch, uses_workers=False)
    assert (left, notes) == (1, ())
    with pytest.raises(UsageError):
        ran([UsageError("wrong"), passed()], monkeypatch, uses_workers=True)


def test_a_defect_of_a_worker_is_said_in_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    found = read_outcome(error_outcome(DefectError("internal error on w: KeyError: 'x'")))
    assert isinstance(found, DefectError)
    left, dropped, notes = ran([found, passed()], monkeypatch, uses_workers=True)
    assert (left, dropped) == (1, ("a row: internal error on w: KeyError: 'x'",))
    (note,) = notes
    assert "a row was left out because of a defect of budgetplan" in note


def test_a_defect_ends_its_run_and_not_its_worker(tmp_path: Path) -> None:
    def broken(order: AnyOrder, **_: Any) -> FinishedRun:
        assert isinstance(order, RunOrder)
        raise KeyError(order.seed)

    order, events = toy_order(), list[str]()
    device = RunDevice(name="cpu", kind="cpu", memory_bytes=None, processor=order.processor)
    with opened_queue(f"sqlite:///{tmp_path}/study.db", "study") as queue:
        keys = [queue.enqueue(replace(order, seed=seed).to_json()) for seed in (1, 2)]
        summary = work(queue, device, until_empty=True, run=broken, on_event=events.append)
        found = [read_outcome(queue.state(key).outcome) for key in keys]
    assert (summary.done, summary.failed) == (0, 2)
    for error, number in zip(found, (1, 2), strict=True):
        assert isinstance(error, DefectError)
        assert f"internal error on {worker_name(device)}" in str(error)
        assert f"KeyError: {number}" in str(error)
    assert len(events) == 2
    assert all("KeyError" in event for event in events)
