"""Which trainings are kept for corrections of predicted seconds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from plans import make_plan
from trainings import workload

from planner.training import training_run
from profiler.timing import measured_runs


@pytest.mark.parametrize(
    ("device", "watts", "is_kept"),
    [("cuda", None, True), ("cuda", 100.0, False), ("cpu", 100.0, True)],
)
def test_a_run_under_a_power_limit_is_not_kept(
    device: str, watts: float | None, is_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(measured_runs, "record_run", lambda *given, source: kept.append(given))
    monkeypatch.setattr(measured_runs, "this_machine", lambda device: None)
    prediction = SimpleNamespace(
        power_limit_watts=watts, device=SimpleNamespace(name="rtx-3060", kind="cuda")
    )
    plan: Any = SimpleNamespace(prediction=prediction)
    session: Any = SimpleNamespace(
        device=device, candidate=make_plan(workload()).candidate, step_seconds=[1.0] * 4
    )
    training_run._record_time(session, plan)
    assert bool(kept) == is_kept
