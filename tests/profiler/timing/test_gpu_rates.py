"""A GPU that the table lacks is planned for with what was timed on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planner.api import check, explain
from planner.api.plan_functions import _placed_by, planned_spec
from planner.plan import Accuracy, Plan
from planner.target_device import STUDY_DEVICE, find_target
from planner.training.training_run import _cost_model
from profiler.devices import nvml as device
from profiler.devices import table as hardware
from profiler.devices.table import TIMED, lookup, multiprocessors, short_name
from profiler.errors import MeasurementError, UnknownNameError
from profiler.prediction.report import predict
from profiler.running.emulated.gpu import emulated_environment
from profiler.running.emulated.libraries import why_not_emulated
from profiler.timing import gpu_rates as unlisted_gpu
from profiler.timing.rates import published_rates
from profiler.units import GIB
from profiler.workload import Candidate, Workload

SEEN = unlisted_gpu.TimedRates(
    fp32_flops=2e12, fp16_flops=4e12, bf16_flops=1e12, bytes_per_second=6e10, sm_count=14
)


class SmallGpu:
    """What a driver says of a laptop's GPU."""

    nvml_name = "NVIDIA GeForce MX999"
    memory_bytes = 2 * GIB
    compute_capability = (7, 5)

    @property
    def spec(self) -> hardware.DeviceSpec:
        return device.spec_of(self)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """A machine with that GPU; yields what was run to time it."""
    asked: list[str] = []

    def run(function: Any, *_: Any, **__: Any) -> unlisted_gpu.TimedRates:
        asked.append(function.__name__)
        return SEEN

    monkeypatch.setattr(device, "detect_gpu", SmallGpu)
    monkeypatch.setattr(unlisted_gpu, "run_in_process", run)
    monkeypatch.setenv("BUDGETPLAN_CACHE", str(tmp_path))
    yield asked
    hardware._adopted.clear()


def test_it_is_timed_once_and_planned_for(here: list[str]) -> None:
    target = find_target("auto")
    assert (target.label.name, target.runs_on) == ("mx999", "mx999")
    assert target.label.memory_bytes == 2 * GIB
    find_target("mx999")
    assert here == ["time_rates"]
    spec = lookup("MX999")
    assert (multiprocessors(spec).count, multiprocessors(spec).threads) == (14, 1024)
    roofline = published_rates(spec, precision="fp16")
    assert roofline is not None
    assert (roofline.flops_per_second, roofline.watts, roofline.source) == (4e12, None, TIMED)
    load = Workload(model="test_vit", method="head", image_size=64, micro_batch=2)
    report = predict(Candidate(workload=load), device=lookup("mx999"))
    assert report.step_seconds is not None
    assert report.energy_joules is None


def test_a_plan_for_it_is_used_in_a_later_process(here: list[str]) -> None:
    """The list of adopted GPUs is that of a process, so every use of a plan adopts the GPU anew."""
    load = Workload(model="test_vit", method="head", image_size=32, micro_batch=2, num_classes=10)
    report = predict(Candidate(workload=load), device=find_target("auto").spec)
    plan = Plan(
        candidate=report.candidate,
        prediction=report,
        accuracy=Accuracy(value=None, source="not run", kind="none"),
        budget_bytes=GIB,
    )
    for use in (
        check,
        explain,
        lambda plan: planned_spec(plan, "auto"),
        lambda plan: _placed_by(plan, "static", vram=None, threshold=0.5),
        lambda plan: _cost_model(plan, "cuda") or pytest.fail("no cost model"),
    ):
        hardware._adopted.clear()
        use(plan)
    assert here == ["time_rates"]


def test_where_timing_fails_the_answer_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MeasurementError("the run died")

    monkeypatch.setattr(unlisted_gpu, "run_in_process", fail)
    target = find_target("auto")
    assert (target.label.name, target.runs_on) == (STUDY_DEVICE, "cpu")
    assert "MX999 is not in the table, and the run died" in target.label.note
    with pytest.raises(UnknownNameError):
        lookup("mx999")


def test_names_are_as_the_table_has_them() -> None:
    assert short_name("NVIDIA GeForce RTX 3060") == "rtx-3060"
    assert short_name(replace(lookup("t4")).full_name.split(" (")[0]) == "t4"


def test_a_gpu_is_timed_by_its_fastest_runs_between_waits() -> None:
    """Matrices have 4096 x 4096 numbers; the clock of the child process is its own."""
    reason = why_not_emulated()
    if reason:
        pytest.skip(reason)
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).with_name("gpu_rates_child.py"))],
        env=os.environ | emulated_environment(lookup("rtx-3060")) | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rates"] == {
        "fp32_flops": 137_438_953_472 / 0.25,
        "fp16_flops": 137_438_953_472 / 0.0625,
        "bf16_flops": 137_438_953_472 / 0.5,
        "bytes_per_second": 134_217_728 / 0.03125,
        "sm_count": 28.0,
    }
    work = ("mm float32", "mm float16", "mm bfloat16", "copy_ float32")
    assert found["events"] == [
        event for name in work for event in [name, *["wait", "clock", name, "wait", "clock"] * 5]
    ]
