"""Which failures of a run end the question, with stand-ins for the pool and the request."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from planner.recommendation import real_runs
from planner.recommendation.checks import CheckedCandidate
from planner.recommendation.ranking import Question
from planner.recommendation.real_runs import run_best
from planner.workers.orders import FinishedRun
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
) -> tuple[int, tuple[str, ...]]:
    """Return the number of candidates that passed, and the sentences on the others."""
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
    return len(found.passed), found.dropped


def passed() -> FinishedRun:
    return FinishedRun(validation=SimpleNamespace(), host_prediction=None, worker="w")


@pytest.mark.parametrize("error", [InputError("no images"), DeviceError("no GPU")])
def test_what_a_worker_lacks_ends_its_run_alone(
    error: BudgetplanError, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, dropped = ran([error, passed()], monkeypatch, uses_workers=True)
    assert (left, dropped) == (1, (f"a row: {error}",))
    with pytest.raises(type(error)):
        ran([error, error], monkeypatch, uses_workers=True)
    with pytest.raises(type(error)):
        ran([error, passed()], monkeypatch, uses_workers=False)


def test_other_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    left, _ = ran([MeasurementError("slow"), passed()], monkeypatch, uses_workers=False)
    assert left == 1
    with pytest.raises(UsageError):
        ran([UsageError("wrong"), passed()], monkeypatch, uses_workers=True)
