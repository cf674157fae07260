"""Limits of the time of children, and children that hang."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hanging_child import hang
from plans import make_plan

from planner.training import rehearsal, validation
from planner.training.run_options import RunOptions
from profiler.devices.table import lookup
from profiler.errors import MeasurementError
from profiler.running import measurement
from profiler.running.time_limit import LIMIT_RATIO, limit_seconds
from profiler.workload import Candidate, Workload

SMALL = Candidate(
    workload=Workload(model="test_vit", method="head", micro_batch=2, image_size=64, num_classes=10)
)


@pytest.mark.parametrize(
    ("expected", "limit"), [(None, 3600.0), (0.0, 300.0), (30.0, 300.0), (31.0, 310.0)]
)
def test_a_limit_follows_from_the_expected_time(expected: float | None, limit: float) -> None:
    assert limit_seconds(expected, least_seconds=300.0) == limit


def test_a_measurement_counts_all_of_its_steps() -> None:
    assert measurement.measurement_limit(60.0, steps=8) == LIMIT_RATIO * 8 * 60
    assert measurement.measurement_limit(0.1, steps=8) == 300
    assert measurement.measurement_limit(None, steps=8) == 3600


def test_a_rehearsal_counts_parameters_and_micro_batches() -> None:
    plan = make_plan(SMALL.workload.replace(accumulation=4))
    parameters = plan.prediction.parameters.total
    expected = 20 + parameters / 1e7 + 0.5 * 4 * 100
    assert rehearsal.rehearsal_limit(plan.candidate, steps=99) == pytest.approx(10 * expected)
    assert rehearsal.rehearsal_limit(plan.candidate, steps=2) == 300


def measure() -> object:
    return measurement.measure(SMALL, device="cpu", expected_step_seconds=0.001)


def validate() -> object:
    limit = validation.time_limit(0.001, steps=2)
    return validation.validate(
        SMALL, RunOptions(data="digits"), runs_on="cpu", budget_bytes=10**9, timeout_seconds=limit
    )


def rehearse() -> object:
    return rehearsal.rehearse(make_plan(SMALL.workload), lookup("rtx-2060-super"))


@pytest.mark.parametrize(
    ("module", "function", "least", "call"),
    [
        (measurement, "run_measurement", "START_SECONDS", measure),
        (validation, "run_validation", "LOAD_SECONDS", validate),
        (rehearsal, "run_rehearsals", "START_SECONDS", rehearse),
    ],
    ids=["measure", "validate", "rehearse"],
)
def test_a_child_that_hangs_is_killed_at_its_limit(
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    function: str,
    least: str,
    call: Callable[[], object],
) -> None:
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parents[2])]))
    monkeypatch.setattr(module, function, hang)
    monkeypatch.setattr(module, least, 1.0)
    monkeypatch.setattr("profiler.running.time_limit.LIMIT_RATIO", 0.01)
    monkeypatch.setattr(rehearsal, "emulated_environment", lambda device: {})
    started: list[subprocess.Popen[bytes]] = []

    class Recorded(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    with pytest.raises(MeasurementError, match="it took more than 1 s"):
        call()
    (child,) = (each for each in started if "profiler.running.sandbox" in each.args)
    assert child.returncode == -signal.SIGKILL
