"""Corrections of seconds against factors that are known, and runs that are kept or not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from profiler.devices import nvml
from profiler.devices.table import CPU, device_spec
from profiler.timing import kept_corrections, measured_runs
from profiler.timing.corrections import (
    Correction,
    LoadedRun,
    corrected_loads,
    fit_correction,
)
from profiler.timing.measured_runs import (
    MeasuredRun,
    disagreement,
    read_runs,
    record_run,
    this_machine,
)
from profiler.timing.rates import rates
from profiler.workload import Candidate, Workload

HERE = measured_runs.Machine(device="cpu", driver="", processor="made up", threads=1, torch="2")
CANDIDATE = Candidate(workload=Workload(model="test_vit", image_size=32))


def made_up_runs(
    factors: list[float], *, noise: float = 0.0, backbones: int = 6
) -> list[LoadedRun]:
    rng = np.random.default_rng(0)
    runs = []
    for number in range(6 * backbones):
        products, other, waiting = rng.uniform(0.1, 1.0, 3)
        load = np.array([products + other + waiting, products, waiting, 100.0])
        seconds = float(np.dot([products, other, waiting], factors)) * np.exp(rng.normal(0, noise))
        backbone = f"backbone {number % backbones}"
        runs.append(LoadedRun(backbone=backbone, load=load, host_seconds=0.0, seconds=seconds))
    return runs


def test_parts_that_are_corrected_add_up() -> None:
    load = np.array([10.0, 6.0, 1.0, 50.0])
    found = corrected_loads(np.stack([load, 2 * load]), np.array([2.0, 3.0, 5.0, 1.0]))
    assert found.tolist() == [[26.0, 12.0, 5.0, 50.0], [52.0, 24.0, 10.0, 100.0]]
    assert load.tolist() == [10.0, 6.0, 1.0, 50.0]


def test_known_factors_are_found_and_used() -> None:
    found = fit_correction(made_up_runs([1.0, 2.0, 1.5], noise=0.01))
    assert found is not None
    assert found.helps
    assert found.factors[:3] == pytest.approx([1.0, 2.0, 1.5], rel=0.1)
    assert found.errors[1] < 0.05 < found.errors[0]
    low, high = found.interval.low, found.interval.high
    assert 0.8 < low <= 1.0 <= high < 1.2


def test_one_factor_corrects_what_one_factor_explains() -> None:
    found = fit_correction(made_up_runs([1.3, 1.3, 1.3], noise=0.02))
    assert found is not None
    assert found.factors == pytest.approx(np.full(4, 1.3), rel=0.05)


def test_correct_predictions_are_left_alone() -> None:
    found = fit_correction(made_up_runs([1.0, 1.0, 1.0], noise=0.05))
    assert found is not None
    assert not found.helps


def test_two_backbones_are_too_few() -> None:
    assert fit_correction(made_up_runs([2.0, 2.0, 2.0], backbones=2)) is None
    assert fit_correction([]) is None


def test_runs_that_the_host_decides_correct_the_host() -> None:
    runs = [
        LoadedRun(
            backbone=str(i % 4), load=np.array([1e-3, 5e-4, 1e-4, 900.0]), host_seconds=4e-3,
            seconds=8e-3,
        )
        for i in range(12)
    ]  # fmt: skip
    found = fit_correction(runs)
    assert found is not None
    assert found.factors[3] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([1.0, 1.0, 1.0], None),
        ([1.0, 1.2, 1.0, 1.2], 0.2),
        ([1.0, 1.0, 1.0, 1.0], 0.0),
        ([1.0, 1.0, 2.0, 2.0], 1.0),  # it became slower, and stayed so
        ([1.0, 1.0, 9.0, 1.0, 1.0], 0.0),  # the step in the middle is of neither half
    ],
)
def test_the_two_halves_of_a_run(seconds: list[float], expected: float | None) -> None:
    assert disagreement(seconds) == (None if expected is None else pytest.approx(expected))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BUDGETPLAN_CACHE", str(tmp_path))
    return tmp_path


def test_steady_runs_are_kept_and_others_are_not(cache: Path) -> None:
    assert record_run(HERE, CANDIDATE, [1.0, 1.02, 0.99, 1.01], source="measure")
    assert not record_run(HERE, CANDIDATE, [1.0, 1.5, 1.0, 1.5], source="measure")
    assert not record_run(None, CANDIDATE, [1.0] * 4, source="measure")
    (run,) = read_runs(HERE)
    assert run.seconds == pytest.approx(1.005)
    assert run.candidate == CANDIDATE
    assert (cache / measured_runs.RUNS_FILE).exists()


def test_the_newest_run_of_a_candidate_counts_and_other_machines_do_not(cache: Path) -> None:
    other = measured_runs.Machine(device="cpu", driver="", processor="x", threads=2, torch="2")
    record_run(HERE, CANDIDATE, [1.0] * 4, source="measure")
    record_run(other, CANDIDATE, [3.0] * 4, source="train")
    record_run(HERE, CANDIDATE, [2.0] * 4, source="validate")
    assert [run.seconds for run in read_runs(HERE)] == [2.0]


@pytest.mark.parametrize(
    "line", ["", "[1]", "{", '{"candidate": {}}', '{"seconds": NaN}', "\x00" * 9, "[" * 100_000]
)
def test_a_damaged_line_is_skipped(cache: Path, line: str) -> None:
    record_run(HERE, CANDIDATE, [1.0] * 4, source="measure")
    with (cache / measured_runs.RUNS_FILE).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    runs: list[MeasuredRun] = read_runs(HERE)
    assert len(runs) == 1


def test_the_file_is_cut_to_the_newest_runs_and_never_half_written(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured_runs, "MOST_KEPT_RUNS", 2)
    for seconds in range(1, 6):
        record_run(HERE, CANDIDATE, [float(seconds)] * 4, source="measure")
    path = cache / measured_runs.RUNS_FILE
    before = path.read_text()

    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        assert [run.seconds for run in read_runs(HERE)] == [5.0]
    assert path.read_text() == before
    read_runs(HERE)
    assert path.read_text().splitlines() == before.splitlines()[-2:]
    assert list(cache.iterdir()) == [path]


def test_predictions_use_a_correction_that_helps(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_corrections, "this_machine", lambda device: HERE)
    workload = CANDIDATE.workload
    plain = rates(CPU, workload)
    assert plain is not None
    assert plain.factors is None
    kept = Correction(
        factors=np.array([1.0, 2.0, 3.0, 1.0]), errors=np.array([0.3, 0.1]),
        spread=np.array([0.8, 1.2]), counts=np.array([12.0, 4.0]),
    )  # fmt: skip
    kept_corrections.keep_correction(HERE, kept)
    found = rates(CPU, workload)
    assert found is not None
    assert found.factors == (1.0, 2.0, 3.0, 1.0)
    assert found.spread == kept.interval
    assert "30 % before and 10 % after" in found.source
    without = rates(CPU, workload, corrected=False)
    assert without is not None
    assert without.factors is None
    kept_corrections.keep_correction(HERE, None)
    again = rates(CPU, workload)
    assert again is not None
    assert again.factors is None


def test_the_machine_of_a_run_is_that_of_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two kinds of GPU."""
    gpus = [SimpleNamespace(spec=device_spec(name)) for name in ("rtx-3060", "rtx-2060-super")]
    monkeypatch.setattr(nvml, "detect_gpu", lambda cuda_index=0: gpus[cuda_index])
    for index, gpu in enumerate(gpus):
        found = this_machine(gpu.spec, cuda_index=index)
        assert found is not None
        assert found.device == gpu.spec.name
        assert this_machine(gpu.spec, cuda_index=1 - index) is None
