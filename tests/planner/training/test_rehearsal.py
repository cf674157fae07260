"""Rehearsals on an emulated GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from plans import make_plan

from planner import rehearse
from planner.cost.fit_probability import FitRule, fit_by_rule
from planner.plan import Plan
from planner.recommendation.checks import CheckedCandidate
from planner.recommendation.rehearse_front import rehearse_front
from planner.recommendation.request import Request
from planner.search.problem import TrialResult
from planner.training import rehearsal
from planner.training.rehearsal_run import (
    ExhaustedMemory,
    RehearsalBatch,
    RehearsalRequest,
    RehearsalRow,
    RehearsedBatch,
    RehearsedRun,
    StageBytes,
)
from profiler.devices.table import lookup
from profiler.errors import DeviceError, InputError, MeasurementError, UsageError
from profiler.prediction.report import predict
from profiler.records import Rung
from profiler.running.emulated.gpu import emulated_environment
from profiler.running.emulated.libraries import why_not_emulated
from profiler.units import GIB
from profiler.workload import Candidate, Workload

DEVICE = lookup("rtx-2060-super")
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def found() -> Any:
    reason = why_not_emulated()
    if reason:
        pytest.skip(reason)
    paths = [str(HERE.parents[2]), str(HERE)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / "rehearsal_child.py")],
        env=os.environ
        | emulated_environment(DEVICE)
        | {
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_rehearsal_runs_every_stage_and_its_step_takes_what_is_predicted(found: Any) -> None:
    from rehearsal_child import WORKLOAD

    good = found["good"]["run"]
    stages = {reading["stage"]: reading for reading in good["stages"]}
    assert [*stages] == [
        "loading the model",
        "the first step",
        "the second step",
        "a training step",
        "evaluation",
        "saving and resuming",
        "a step after resuming",
    ]
    assert good["expandable_segments"]
    predicted = predict(Candidate(workload=WORKLOAD), device=DEVICE).memory
    step = stages["a training step"]
    assert step["peak_bytes"] == pytest.approx(predicted.peak_bytes, rel=0.005)
    assert step["reserved_bytes"] == predicted.reserved_bytes


def test_tensors_that_wait_on_the_host_leave_the_memory_that_is_predicted(found: Any) -> None:
    from rehearsal_child import LARGE, ON_THE_HOST

    run = found["on the host"]["run"]
    step = next(each for each in run["stages"] if each["stage"] == "a training step")
    predicted = predict(ON_THE_HOST, device=DEVICE).memory
    kept = predict(Candidate(workload=LARGE), device=DEVICE).memory
    assert step["peak_bytes"] == pytest.approx(predicted.peak_bytes, rel=0.001)
    assert step["reserved_bytes"] == predicted.reserved_bytes
    assert step["peak_bytes"] < 0.8 * kept.peak_bytes


def test_an_optimizer_on_the_host_leaves_the_memory_that_is_predicted(found: Any) -> None:
    from rehearsal_child import WITH_STATE_ON_THE_HOST

    run = found["its state"]["run"]
    predicted = predict(WITH_STATE_ON_THE_HOST, device=DEVICE).memory
    assert predicted.at_peak is not None
    assert predicted.at_peak.optimizer == 0
    for stage in ("a training step", "a step after resuming"):
        step = next(each for each in run["stages"] if each["stage"] == stage)
        assert step["peak_bytes"] == pytest.approx(predicted.peak_bytes, rel=0.002), stage
        assert step["reserved_bytes"] == predicted.reserved_bytes, stage


def test_a_method_that_decomposes_gradients_is_not_judged_by_values_that_nobody_computed(
    found: Any,
) -> None:
    assert not found["galore"].get("failure"), found["galore"]
    assert found["galore"]["run"]["stages"]


def test_rehearsals_of_one_process_do_not_depend_on_each_other(found: Any) -> None:
    assert found["good again"] == found["good"]
    failed = found["out of memory"]
    assert failed["run"] is None
    assert failed["exhausted"] == "device"
    assert "fails: OutOfMemoryError: CUDA out of memory" in failed["failure"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("mixes_devices", "the first step fails: RuntimeError: Expected all tensors to be on the"),
        ("reads_on_the_host", "the first step fails: TypeError: can't convert cuda:0 device"),
        ("draws_on_the_host", "the first step fails: RuntimeError: Expected a 'cuda' device type"),
        ("trains_the_bias_of_a_long_norm", "returned an invalid gradient at index 2"),
        ("kernels", "no kernels for compute capability 7.5, only for sm_80, sm_90a"),
    ],
)
def test_a_fault_that_only_cuda_shows_is_found_with_its_stage(
    found: Any, fault: str, words: str
) -> None:
    assert words in found[fault]


@pytest.mark.parametrize(
    "fault", ["asks_python_for_too_much", "asks_torch_for_too_much", "pins_too_much"]
)
def test_the_memory_of_this_machine_is_not_that_of_the_gpu(found: Any, fault: str) -> None:
    assert found[fault]["run"] is None
    assert found[fault]["exhausted"] == "host"


def test_a_row_for_which_this_machine_is_too_small_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profiler.running.emulated.libraries.why_not_emulated", lambda: "")
    monkeypatch.setattr(rehearsal, "emulated_environment", lambda device: {})
    rows = tuple(
        RehearsalRow(run=None, failure="the first step fails", exhausted=memory)
        for memory in (ExhaustedMemory.NONE, ExhaustedMemory.HOST, ExhaustedMemory.DEVICE)
    )
    monkeypatch.setattr(rehearsal, "_run_in_processes", lambda *_, **__: list(rows))
    request = cast(Request, SimpleNamespace(
        device=DEVICE, validations=1, runs_on="cpu", budget_bytes=GIB
    ))  # fmt: skip
    monkeypatch.setattr("planner.recommendation.rehearse_front.plan_recipe", lambda *_: None)
    candidates = [checked(micro_batch) for micro_batch in (1, 2, 4)]
    outcome = rehearse_front(request, candidates, lambda *_: None)
    assert outcome.passed == (candidates[1],)
    assert len(outcome.dropped) == 2
    (note,) = outcome.notes
    assert "needs more than 6.00 GiB of this machine's own memory (the first step fails)" in note


def checked(micro_batch: int) -> CheckedCandidate:
    plan = a_plan()
    workload = plan.candidate.workload.replace(micro_batch=micro_batch)
    result = TrialResult(
        candidate=Candidate(workload=workload), assignment={}, score=0.0, cost=1.0,
        peak_bytes=1, device_bytes=1, step_seconds=None, energy_joules=None, reason="a test",
    )  # fmt: skip
    return CheckedCandidate(result=result, prediction=plan.prediction)


def test_nothing_to_rehearse_needs_no_process() -> None:
    assert rehearsal.rehearse_all([], DEVICE) == []


def a_plan() -> Plan:
    return make_plan(Workload(model="test_vit", num_classes=10, micro_batch=2, image_size=32))


@pytest.mark.parametrize(
    ("budget_bytes", "largest", "own_memory"),
    [(4 * 10**9, "2.10 GB", " GB of this machine"), (4 * GIB, "1.96 GiB", " GiB of this machine")],
)
def test_sizes_in_the_words_of_a_rehearsal_are_in_the_unit_of_the_budget(
    budget_bytes: int, largest: str, own_memory: str
) -> None:
    workload = Workload(model="test_vit", num_classes=10, image_size=32)
    asked = rehearsal.Rehearsal(
        candidate=Candidate(workload=workload), recipe=None, budget_bytes=budget_bytes
    )
    reading = StageBytes(
        stage="a training step", peak_bytes=2 * 10**9, reserved_bytes=2_104_000_000
    )
    run = RehearsedRun(stages=(reading,), expandable_segments=True)
    notes = rehearsal.rehearsal_report(asked, DEVICE, run).notes
    assert f"the whole run reserved at most {largest}, in a training step" in notes
    row = RehearsalRow(run=None, failure="killed", exhausted=ExhaustedMemory.HOST)
    error = rehearsal._rehearsal_error(row, asked)
    assert own_memory in str(error)
    rule = FitRule.of(workload, replace(DEVICE, name="unknown"))
    rule = replace(rule, largest_context_bytes=rule.context_bytes + 2 * 10**9)
    fit = fit_by_rule(rule, 10**9, budget_bytes)
    assert any(note.endswith(f" {largest.split()[1]}") for note in fit.notes)


def test_what_cannot_be_rehearsed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="emulates a GPU, and cpu is none"):
        rehearse(a_plan())
    monkeypatch.setattr(
        "profiler.running.emulated.libraries.why_not_emulated", lambda: "an emulated GPU needs gcc"
    )
    with pytest.raises(DeviceError, match="needs gcc"):
        rehearse(a_plan(), device="rtx-3060")


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_rehearsals_in_several_processes_keep_their_order(
    processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(function: Any, batch: RehearsalBatch, *_: Any, on_progress: Any, **__: Any) -> Any:
        on_progress("all", 1.0)
        sizes = [request.candidate.workload.micro_batch for request in batch.requests]
        return RehearsedBatch(rows=tuple(RehearsalRow(run=None, failure=str(n)) for n in sizes))

    monkeypatch.setattr(rehearsal, "run_in_process", run)
    monkeypatch.setattr(rehearsal, "emulated_environment", lambda device: {})
    monkeypatch.setattr(rehearsal, "_processes", lambda candidates: processes)
    workload = Workload(model="test_vit", num_classes=10, image_size=32)
    asked = [
        rehearsal.Rehearsal(
            candidate=Candidate(workload=workload.replace(micro_batch=n)),
            recipe=None,
            budget_bytes=1 << 31,
        )
        for n in (5, 3, 8, 1, 2, 13, 21)
    ]
    fractions: list[float] = []
    found = rehearsal.rehearse_all(asked, DEVICE, on_progress=lambda _, f: fractions.append(f))
    assert [str(each) for each in found] == ["5", "3", "8", "1", "2", "13", "21"]
    assert len(fractions) == processes
    assert fractions == sorted(fractions) and fractions[-1] == pytest.approx(1.0)


def test_a_process_of_rehearsals_that_dies_ends_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[bool] = []

    def run(function: Any, batch: RehearsalBatch, *_: Any, cancelled: Any, **__: Any) -> Any:
        if batch.requests[0].candidate.workload.micro_batch == 1:
            raise MeasurementError("the run died")
        ended.append(cancelled.wait(timeout=60))
        raise MeasurementError("the run was cancelled")

    monkeypatch.setattr(rehearsal, "run_in_process", run)
    monkeypatch.setattr(rehearsal, "emulated_environment", lambda device: {})
    workload = Workload(model="test_vit", num_classes=10, image_size=32)
    requests = [
        RehearsalRequest(
            candidate=Candidate(workload=workload.replace(micro_batch=n)),
            cap_bytes=1 << 30,
            recipe=None,
            steps=3,
        )
        for n in (1, 2)
    ]
    with pytest.raises(MeasurementError, match="the run died"):
        rehearsal._run_in_processes(requests, DEVICE, processes=2, on_progress=lambda *_: None)
    assert ended == [True]


def test_processes_of_rehearsals_need_cores_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = [Candidate(workload=Workload(model="test_vit", num_classes=10))] * 3
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    for gibibytes, processes in ((0.5, 1), (3.9, 1), (4.1, 2), (100, 3)):
        free = int(gibibytes * GIB)
        monkeypatch.setattr(rehearsal, "available_host_bytes", lambda free=free: free)
        assert rehearsal._processes(candidates) == processes
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    assert rehearsal._processes(candidates) == 2


def test_a_rehearsal_stands_in_a_plan_under_its_own_name() -> None:
    plan = a_plan()
    emulated = replace(plan.prediction, rung=Rung.EMULATED)
    held = replace(plan, rehearsal=emulated)
    assert Plan.from_json(json.loads(json.dumps(held.to_json()))) == held
    for part in ("measurement", "prediction"):
        with pytest.raises(InputError, match=f"a {part} cannot have rung 'emulated'"):
            Plan.from_json(plan.to_json() | {part: emulated.to_json()})
    with pytest.raises(InputError, match="a rehearsal cannot have rung 'composed'"):
        Plan.from_json(plan.to_json() | {"rehearsal": plan.prediction.to_json()})
    before = plan.to_json()
    del before["rehearsal"]  # a plan of an older minor version
    assert Plan.from_json(before) == plan
