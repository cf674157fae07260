"""Known factors and a known power are found again, and the errors say what a new backbone costs."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from planner.cost.model import CostModel
from profiler.devices.table import device_spec
from profiler.errors import InputError, UsageError
from profiler.replay.event_log import OperationRecord, Phase
from profiler.timing.roofline import Rates
from profiler.workload import Workload

if TYPE_CHECKING:
    from calibration import Calibration
    from calibration_fit import CalibrationRun

STUDY_FOLDERS = ("gpu_grid",)

BASE = Rates(
    flops_per_second=1e13,
    bytes_per_second=5e11,
    watts=100.0,
    source="made up",
    launch_seconds=5e-6,
)
ARITHMETIC, TRAFFIC, LAUNCH = 2.0, 1.5, 3.0
TRUE = Rates(
    flops_per_second=BASE.flops_per_second / ARITHMETIC,
    bytes_per_second=BASE.bytes_per_second / TRAFFIC,
    watts=None,
    source="the truth",
    launch_seconds=BASE.launch_seconds * LAUNCH,
)
FIXED, WATTS = 0.5, 180.0


def run(
    backbone: str, seed: int, *, slower: float = 1.0, precision: str = "fp32"
) -> CalibrationRun:
    """A step of 300 operations: large products, large copies, and small ones."""
    from calibration_fit import CalibrationRun, seconds_of

    rng = np.random.default_rng(seed)
    products = rng.uniform(0.1, 0.6)  # runs must differ in what they are bound by
    flops = 10.0 ** rng.uniform(6, 9.7, 300) * (rng.random(300) < products)
    moved = 10.0 ** rng.uniform(3, 7 + 2 * rng.random(), 300)
    repeats = rng.integers(1, 3, 300)
    work = np.stack([flops, moved, np.ones(300), repeats], axis=1).astype(np.float64)
    seconds = seconds_of(work, TRUE) * slower
    return CalibrationRun(
        backbone=backbone,
        kind="attention",
        precision=precision,
        work=work,
        step_seconds=seconds,
        energy_joules=FIXED + WATTS * seconds,
    )


def fitted(runs: list[CalibrationRun]) -> Calibration:
    from calibration_fit import fit_calibration

    return fit_calibration(
        runs, device="h200", base={"fp32": BASE, "bf16": BASE}, source="synthetic"
    )


@cache
def known_runs() -> list[CalibrationRun]:
    return [run(f"model {seed % 4}", seed) for seed in range(24)]


def test_seconds_are_the_rooflines():
    from calibration_fit import seconds_of, work_of

    operations = [
        OperationRecord(phase=Phase.FORWARD, unit=0, flops=10**9, moved_bytes=10**6),
        OperationRecord(phase=Phase.BACKWARD, unit=0, flops=10**4, moved_bytes=10**9),
        OperationRecord(phase=Phase.FORWARD, unit=0, flops=1, moved_bytes=1, launches=300),
        OperationRecord(phase=Phase.OPTIMIZER, unit=-1, flops=1, moved_bytes=1),
    ]
    work = work_of(operations, Workload(model="vit_t", accumulation=1))
    assert seconds_of(work, BASE) == pytest.approx(BASE.total_seconds(operations))


def test_micro_batches_count_and_the_update_does_not():
    from calibration_fit import work_of

    operations = [
        OperationRecord(phase=Phase.FORWARD, unit=0, flops=10**9, moved_bytes=0),
        OperationRecord(phase=Phase.OPTIMIZER, unit=-1, flops=10**9, moved_bytes=0),
    ]
    work = work_of(operations, Workload(model="vit_t", accumulation=8))
    assert work[:, 3].tolist() == [4.0, 1.0]  # a replay of eight shows two


def test_known_factors_are_found():
    fit = fitted(known_runs()).time[0]
    assert fit.arithmetic == pytest.approx(ARITHMETIC, rel=0.02)
    assert fit.traffic == pytest.approx(TRAFFIC, rel=0.02)
    assert fit.launch == pytest.approx(LAUNCH, rel=0.02)
    assert fit.largest_error is not None and fit.largest_error < 0.02
    assert fit.uncalibrated_median_error > 0.3
    assert (fit.runs, fit.backbones) == (24, 4)


def test_known_power_is_found():
    energy = fitted(known_runs()).energy["fp32"]
    assert energy.fixed_joules == pytest.approx(FIXED, rel=1e-6)
    assert energy.watts == pytest.approx(WATTS, rel=1e-6)
    assert energy.joules(2.0) == pytest.approx(FIXED + 2 * WATTS, rel=1e-6)
    assert energy.median_error == pytest.approx(0.0, abs=1e-6)
    assert energy.watts_through_origin > WATTS
    assert energy.median_error_through_origin > 0.001


def test_noise_shows_in_the_errors():
    rng = np.random.default_rng(1)
    noisy = [replace(r, step_seconds=r.step_seconds * rng.lognormal(0, 0.1)) for r in known_runs()]
    fit = fitted(noisy).time[0]
    assert fit.arithmetic == pytest.approx(ARITHMETIC, rel=0.2)
    assert 0.03 < fit.median_error < 0.15


def test_a_backbone_unlike_the_others_shows_in_the_largest_error():
    """Fitted to itself it would hide; left out it is off by what makes it different."""
    strange = [run("strange", 100 + seed, slower=2.0) for seed in range(6)]
    fit = fitted([*known_runs(), *strange]).time[0]
    assert fit.largest_error > 0.4
    assert fit.median_error < 0.3


def test_a_single_backbone_has_no_honest_error():
    calibration = fitted([run("alone", seed) for seed in range(6)])
    assert calibration.time[0].median_error is None
    assert calibration.energy["fp32"].largest_error is None


def test_a_factor_that_nothing_speaks_of_stays_at_the_data_sheets():
    from calibration_fit import CalibrationRun, seconds_of

    copies = np.array([[0.0, 1e9, 1.0, 1.0]])
    runs = [
        CalibrationRun(
            backbone=f"m{i}",
            kind="scan",
            precision="bf16",
            work=copies * (i + 1),
            step_seconds=seconds_of(copies * (i + 1), TRUE),
        )
        for i in range(5)
    ]
    calibration = fitted(runs)
    fit = calibration.time[0]
    assert (fit.arithmetic, fit.launch) == pytest.approx((1.0, 1.0))
    assert fit.traffic == pytest.approx(TRAFFIC, rel=0.01)
    assert calibration.energy == {}
    assert calibration.rates(kind="scan", precision="bf16").watts is None


def test_what_was_not_measured_is_none():
    calibration = fitted(known_runs())
    assert calibration.rates(kind="attention", precision="bf16") is None
    assert calibration.rates(kind="convolution", precision="fp32") is None


def test_too_few_runs_are_refused():
    with pytest.raises(UsageError, match="4 runs of one kind and precision, got 3"):
        fitted(known_runs()[:3])


def test_a_file_gives_the_same_and_the_cost_model_takes_it(tmp_path: Path):
    from calibration import Calibration
    from calibration_fit import seconds_of

    calibration = fitted(known_runs())
    calibration.save(tmp_path / "h200.json")
    loaded = Calibration.load(tmp_path / "h200.json")
    assert loaded == calibration
    rates = loaded.rates(kind="attention", precision="fp32")
    assert rates is not None and rates.source == "calibrated: synthetic"
    for known in known_runs():
        assert seconds_of(known.work, rates) == pytest.approx(known.step_seconds, rel=0.02)
    workload = Workload(model="vit_t", precision="fp32")
    assert CostModel(device_spec("h200"), roofline=rates).rates(workload) == rates


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data.pop("time"), "calibration.time: missing field"),
        (lambda data: data.update(schema="budgetplan.plan/1"), "calibration.schema: expected"),
        (lambda data: data["time"][0].update(traffic=0.0), "time[0].traffic: expected number > 0"),
        (lambda data: data["time"][0].update(precision="fp8"), "no rates for precision 'fp8'"),
        (lambda data: data["base"]["fp32"].update(flops_per_second=-1.0), "must be positive, got"),
        (lambda data: data["time"][0].update(strange=1), "time[0].strange: unknown field"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, damage, message: str):
    from calibration import Calibration

    path = tmp_path / "h200.json"
    fitted(known_runs()).save(path)
    data = json.loads(path.read_text())
    damage(data)
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match="is not a calibration") as caught:
        Calibration.load(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("resnet18", "convolution"),
        ("convnext_t", "convolution"),
        ("vit_t", "attention"),
        ("swin_t", "attention"),
        ("vim_t", "scan"),
        ("mambavision_t", "scan"),
    ],
)
def test_kinds(model: str, kind: str):
    from backbone_kinds import backbone_kind

    assert backbone_kind(model) == kind
