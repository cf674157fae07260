"""Rehearsals on an emulated GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plans import make_plan

from planner import rehearse
from planner.plan import Plan
from profiler.devices.table import lookup
from profiler.errors import DeviceError, InputError, UsageError
from profiler.prediction.report import predict
from profiler.records import Rung
from profiler.running.emulated.gpu import emulated_environment
from profiler.running.emulated.libraries import why_not_emulated
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


def test_rehearsals_of_one_process_do_not_depend_on_each_other(found: Any) -> None:
    assert found["good again"] == found["good"]
    failed = found["out of memory"]
    assert failed["run"] is None
    assert failed["is_out_of_memory"]
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


def a_plan() -> Plan:
    return make_plan(Workload(model="test_vit", num_classes=10, micro_batch=2, image_size=32))


def test_what_cannot_be_rehearsed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="emulates a GPU, and cpu is none"):
        rehearse(a_plan())
    monkeypatch.setattr(
        "profiler.running.emulated.libraries.why_not_emulated", lambda: "an emulated GPU needs gcc"
    )
    with pytest.raises(DeviceError, match="needs gcc"):
        rehearse(a_plan(), device="rtx-3060")


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
