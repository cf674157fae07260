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
from planner.training.probe_records import Learner
from planner.training.run_options import RunOptions
from planner.training.validation import Validation
from planner.workers import run_device
from planner.workers.orders import AnyOrder, MeasureOrder, ProbeOrder, RunOrder, read_order
from planner.workers.outcomes import (
    FinishedMeasurement,
    FinishedProbe,
    FinishedRun,
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


def measure_order(**changes: Any) -> MeasureOrder:
    made = MeasureOrder.of(
        toy_order().candidate,
        planned=device_label("rtx-3060"),
        prediction=finished().validation.report,
        cap_bytes=2**30,
        steps=3,
        warmup=1,
    )
    return replace(made, **changes)


def probe_order(**changes: Any) -> ProbeOrder:
    recipe = Recipe(learning_rate=1e-3, epochs=2, patience_epochs=2, source="a test")
    made = ProbeOrder.of(
        [Learner(name="full", candidate=toy_order().candidate, recipe=recipe)],
        purpose="compare",
        device="cpu",
        planned=device_label("rtx-3060"),
        needed_bytes=2**29,
        run=RunOptions(data="digits", seed=7, pretrained=False),
        study="toy",
        seconds=60.0,
        limit_seconds=100.0,
        weights={},
        pretrained_models=(),
    )
    return replace(made, **changes)


@pytest.mark.parametrize(
    "order",
    [
        measure_order(),
        measure_order(cap_bytes=None, step_seconds=None),
        probe_order(),
        probe_order(purpose="rates", device="cuda", planned=device_label("rtx-3060")),
        toy_order(3),
        toy_order(
            recipe=Recipe(learning_rate=1e-3, epochs=2, patience_epochs=2, source="a test"),
            step_seconds=0.5,
            steps=4,
            planned=device_label("rtx-3060", "a note"),
        ),
    ],
)
def test_an_order_is_read_as_it_was_written(order: AnyOrder) -> None:
    again = read_order(through_json(order.to_json()))
    assert type(again) is type(order)
    assert again == order


def test_an_order_of_an_earlier_version_is_read() -> None:
    """Its fields are those of a validation, without the ones that came later."""
    data = through_json(toy_order(3).to_json()) | {"schema_minor": 0}
    del data["pretrained_models"]
    assert read_order(data) == toy_order(3)


@pytest.mark.parametrize(
    "result",
    [
        FinishedProbe(
            keys=("0a", "ff"),
            earlier_runs=1,
            seconds=2.5,
            reason="clear",
            failures={"a": "n"},
            test_images=9,
        ),
        FinishedMeasurement(report=finished().validation.report, worker="cpu on here"),
    ],
)
def test_a_result_is_read_as_it_was_written(result: Any) -> None:
    assert read_outcome(through_json(result.to_json())) == result


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
        (toy_order().to_json(), read_order),
        (measure_order().to_json(), read_order),
        (probe_order().to_json(), read_order),
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
    for read in (RunOrder.from_json, read_order, read_outcome):
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
        (CPU_HERE, {"data": "/nowhere/photos"}, "'/nowhere/photos' does not exist"),
        (CPU_HERE, {"pretrained_models": ("vim_s",)}, "pretrained weights of vim_s"),
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


@pytest.mark.parametrize(
    ("device", "order", "reason"),
    [
        (CPU_HERE, probe_order(), None),
        (GPU_HERE, probe_order(), "planned for cpu"),
        (GPU_HERE, probe_order(planned=device_label("rtx-3060"), device="cuda"), None),
        (CPU_HERE, probe_order(planned=device_label("rtx-3060")), "not to be run on a CPU"),
        (GPU_HERE, measure_order(), None),
        (CPU_HERE, measure_order(), "not to be run on a CPU"),
        (CPU_HERE, measure_order(planned=device_label("cpu"), processor="another"), "another"),
    ],
)
def test_a_probe_takes_any_cpu_and_a_measurement_its_own_device(
    device: RunDevice, order: AnyOrder, reason: str | None
) -> None:
    found = device.why_not(order)
    assert (found is None) == (reason is None)
    assert reason is None or reason in (found or "")


# ---- images --------------------------------------------------------------------------------------

COPIED = {
    "vww": ("vww/annotations/instances_train.json", "vww/annotations/instances_val.json"),
    "vtab:cifar": tuple(f"vtab-1k/cifar/{n}.txt" for n in ("train800", "val200", "test")),
    "fgvc:cub": ("fgvc/CUB_200_2011/train.json", "fgvc/CUB_200_2011/test.json"),
}
"""Files of the data sets that users copy, in the folder of data sets."""


@pytest.mark.parametrize("data", COPIED)
def test_a_worker_without_the_images_leaves_the_run_until_they_come(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUDGETPLAN_DATA", str(tmp_path))
    order = toy_order(data=data)
    for name in COPIED[data]:
        run_device._missing_data.cache_clear()
        assert "the images are not here" in (CPU_HERE.why_not(order) or "")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    run_device._missing_data.cache_clear()
    assert CPU_HERE.why_not(order) is None


def test_images_are_downloaded_before_a_run_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Downloads:
        def __init__(self, root: str, *, train: bool, download: bool) -> None:
            assert download
            asked.append(root)
            if len(asked) == 1:
                raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Downloads)
    monkeypatch.setenv("BUDGETPLAN_DATA", str(tmp_path))
    order = toy_order(data="cifar10")
    run_device._missing_data.cache_clear()
    assert "no network" in (CPU_HERE.why_not(order) or "")
    assert "no network" in (CPU_HERE.why_not(order) or "")
    assert asked == [str(tmp_path)]  # not tried again at once
    run_device._missing_data.cache_clear()
    assert CPU_HERE.why_not(order) is None
    damaged = toy_order(data="cifar10-c:fog:3")
    assert "fog.npy does not exist" in (CPU_HERE.why_not(damaged) or "")


def test_a_named_folder_must_be_here() -> None:
    assert "/nowhere/annotations" in (CPU_HERE.why_not(toy_order(data="vww:/nowhere")) or "")


def test_other_weights_than_those_of_the_order_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    file.write_bytes(b"one")
    order = toy_order(weights=str(file), weights_sha256="0" * 64)
    assert "other weights" in (CPU_HERE.why_not(order) or "")
    right = hashlib.sha256(b"one").hexdigest()
    assert CPU_HERE.why_not(replace(order, weights_sha256=right)) is None
    with pytest.raises(InputError, match="other weights"):
        order.options_here()


def test_a_run_at_another_power_limit_than_the_planned_one_is_noted() -> None:
    on_cpu = finished().validation
    on_gpu = replace(on_cpu, report=replace(on_cpu.report, device=device_label("rtx-3060")))
    limited = replace(on_gpu.report, power_limit_watts=120.0)
    assert "not at the planned 120 W" in str(other_limit_note(limited, on_gpu))
    assert other_limit_note(limited, on_cpu) is None
    assert other_limit_note(on_gpu.report, on_gpu) is None
