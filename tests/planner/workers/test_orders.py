"""Orders and outcomes as JSON of unknown origin, and which device takes which order."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.plan import Accuracy
from planner.recipe import Recipe
from planner.training.validation import Validation
from planner.workers.orders import (
    FinishedRun,
    RunOrder,
    error_outcome,
    read_outcome,
)
from planner.workers.real_run import other_limit_note
from planner.workers.run_device import RunDevice
from profiler.devices.table import device_label
from profiler.errors import (
    BudgetplanError,
    DeviceError,
    InputError,
    MeasurementError,
    OutOfMemoryError,
    UsageError,
)
from profiler.models.backbones import WeightSource
from profiler.records import Memory, Parameters, Report, Rung
from tests.planner.workers.toy_runs import CPU_HERE, toy_order

GPU_HERE = RunDevice(name="rtx-3060", kind="cuda", memory_bytes=12 * 2**30, processor="toy")


def finished() -> FinishedRun:
    report = Report(
        candidate=toy_order().candidate,
        device=device_label("cpu"),
        rung=Rung.MEASURED,
        memory=Memory(peak_bytes=7),
        flops=None,
        step_seconds=0.25,
        energy_joules=None,
        parameters=Parameters(total=11, trainable=3),
    )
    return FinishedRun(
        validation=Validation(
            report=report,
            accuracy=Accuracy(value=0.5, source="measured", kind="measured"),
            accuracy_images=20,
            weights=WeightSource(kind="random", detail="no file"),
            data={"name": "digits"},
            losses=(2.5, 2.25),
            inference_seconds=1.5,
            inference_peak_bytes=5,
        ),
        host_prediction=None,
        worker="cpu on here",
    )


def through_json(data: Any) -> Any:
    return json.loads(json.dumps(data))


@pytest.mark.parametrize(
    "order",
    [
        toy_order(3),
        toy_order(
            recipe=Recipe(learning_rate=1e-3, epochs=2, patience_epochs=2, source="a test"),
            step_seconds=0.5,
            steps=4,
            planned=device_label("rtx-3060", "a note"),
        ),
    ],
)
def test_an_order_is_read_as_it_was_written(order: RunOrder) -> None:
    assert RunOrder.from_json(through_json(order.to_json())) == order


def test_a_run_is_read_as_it_was_written() -> None:
    run = finished()
    assert read_outcome(through_json(run.to_json())) == run
    with_host = replace(run, host_prediction=run.validation.report)
    assert read_outcome(through_json(with_host.to_json())) == with_host


@pytest.mark.parametrize(
    "error",
    [
        UsageError("a"), InputError("b"), DeviceError("c"), MeasurementError("d"),
        OutOfMemoryError(cap_bytes=2**30, detail="it used 2 GB"),
    ],
)  # fmt: skip
def test_an_error_is_read_as_it_was_raised(error: BudgetplanError) -> None:
    again = read_outcome(through_json(error_outcome(error)))
    assert type(again) is type(error)
    assert str(again) == str(error)


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = data.items() if isinstance(data, dict) else enumerate(data)
    found = []
    for key, value in items:
        found.append((*path, key))
        if isinstance(value, dict | list):
            found += places(value, (*path, key))
    return found


JUNK: Any = st.sampled_from(
    [None, -1, 2**70, 1e300, "x" * 300, "\x1b[2J", [], {}, True, [[]], {"a": {}}]
)


@given(st.data(), JUNK)
def test_a_changed_object_is_refused_in_one_line_or_read(data: st.DataObject, junk: Any) -> None:
    for original, read in (
        (toy_order().to_json(), RunOrder.from_json),
        (finished().to_json(), read_outcome),
        (error_outcome(MeasurementError("d")), read_outcome),
    ):
        changed = copy.deepcopy(through_json(original))
        *folder, key = data.draw(st.sampled_from(places(changed)))
        inside = changed
        for step in folder:
            inside = inside[step]
        if data.draw(st.booleans()):
            inside[key] = junk
        else:
            del inside[key]
        try:
            read(changed)
        except BudgetplanError as error:
            assert str(error).isprintable()


@pytest.mark.parametrize("data", [None, [], "order", {}, {"schema": "budgetplan.plan/1"}])
def test_something_else_is_no_order_and_no_outcome(data: object) -> None:
    for read in (RunOrder.from_json, read_outcome):
        with pytest.raises(InputError):
            read(data)


@pytest.mark.parametrize(
    ("device", "changes", "reason"),
    [
        (CPU_HERE, {}, None),
        (CPU_HERE, {"processor": "another"}, "another"),
        (CPU_HERE, {"planned": device_label("rtx-3060")}, None),
        (CPU_HERE, {"planned": device_label("rtx-3060"), "processor": "another"}, None),
        (CPU_HERE, {"planned": device_label("rtx-3060"), "allows_cpu": False}, "not to be run"),
        (CPU_HERE, {"needed_bytes": 2**40}, "more memory"),
        (CPU_HERE, {"data": "/nowhere/photos"}, "no folder"),
        (CPU_HERE, {"weights": "/nowhere/w.pt", "weights_sha256": "0"}, "no file"),
        (CPU_HERE, {"weights": "/nowhere/w.pt::ema", "weights_sha256": "0"}, "no file"),
        (GPU_HERE, {"planned": device_label("rtx-3060")}, None),
        (GPU_HERE, {"planned": device_label("rtx-3060"), "processor": "another"}, None),
        (GPU_HERE, {"planned": device_label("rtx-3090")}, "planned for rtx-3090"),
        (GPU_HERE, {}, "planned for cpu"),
        (GPU_HERE, {"planned": device_label("rtx-3060"), "needed_bytes": 2**34}, "more memory"),
    ],
)
def test_a_measurement_is_of_the_planned_device(
    device: RunDevice, changes: dict[str, Any], reason: str | None
) -> None:
    found = device.why_not(toy_order(**changes))
    assert (found is None) == (reason is None)
    assert reason is None or reason in found


def test_a_named_folder_must_be_here() -> None:
    assert "no folder /nowhere" in (CPU_HERE.why_not(toy_order(data="vww:/nowhere")) or "")
    assert CPU_HERE.why_not(toy_order(data="vww")) is None


def test_other_weights_than_those_of_the_order_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    file.write_bytes(b"one")
    order = toy_order(weights=str(file), weights_sha256="0" * 64)
    assert "other weights" in (CPU_HERE.why_not(order) or "")
    right = hashlib.sha256(b"one").hexdigest()
    assert CPU_HERE.why_not(replace(order, weights_sha256=right)) is None
    with pytest.raises(InputError, match="other weights"):
        order.options_on("cpu")


def test_a_run_at_another_power_limit_than_the_planned_one_is_noted() -> None:
    on_cpu = finished().validation
    on_gpu = replace(on_cpu, report=replace(on_cpu.report, device=device_label("rtx-3060")))
    limited = replace(on_gpu.report, power_limit_watts=120.0)
    assert "not at the planned 120 W" in str(other_limit_note(limited, on_gpu))
    assert other_limit_note(limited, on_cpu) is None
    assert other_limit_note(on_gpu.report, on_gpu) is None
