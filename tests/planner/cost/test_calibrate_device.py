"""Calibration of a machine, with processes in its place that answer known seconds."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from planner.cli import cli
from planner.cost import calibrate_device as calibration
from planner.cost.calibrate_device import calibrate_device
from profiler.devices.table import CPU, device_spec
from profiler.errors import DeviceError, InputError, MeasurementError
from profiler.running.emulated import libraries
from profiler.running.emulated.gpu import emulated_environment
from profiler.running.sandbox import run_in_process
from profiler.running.time_limit import START_SECONDS
from profiler.timing import calibration_cells, measured_runs
from profiler.timing.calibration_cells import CellsRequest, CellsResult, run_cells
from profiler.timing.corrections import LoadedRun
from profiler.workload import Candidate, Workload

CELLS = tuple(
    Candidate(workload=Workload(model=model, micro_batch=batch, image_size=32, num_classes=2))
    for model, batch in itertools.product(("test_vit", "test_resnet", "test_convnext"), (1, 2))
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUDGETPLAN_CACHE", str(tmp_path))
    monkeypatch.setattr(calibration_cells, "calibration_candidates", lambda *, on_cuda: CELLS)


def answer(
    monkeypatch: pytest.MonkeyPatch, *, factor: float, noise: float, wait: float = 0.0
) -> None:
    """Let each cell take ``factor`` times the 10 ms that are predicted for it.

    Args:
        wait: share of its time that the first cell waits for a processor.
    """

    def run(
        function: object,
        request: CellsRequest,
        result: object,
        *,
        timeout_seconds: float,
        on_progress: object,
    ) -> CellsResult:
        assert timeout_seconds >= 3600  # a slow machine takes long, and would lose everything
        rounds = [0.01 * factor * (1 + noise * (i % 2)) for i in range(request.rounds)]
        seconds = tuple(tuple(rounds) for _ in request.candidates)
        rest = len(seconds) - 1
        return CellsResult(
            seconds=seconds,
            clock="wall",
            reasons=("",) * len(seconds),
            waits=(wait, *(0.0 for _ in range(rest))),
        )

    def loaded(runs, device, on_progress):
        return [
            LoadedRun(
                backbone=run.candidate.workload.model, load=np.array([0.01, 0.006, 0.001, 10.0]),
                host_seconds=0.0, seconds=run.seconds,
            )
            for run in runs
        ]  # fmt: skip

    monkeypatch.setattr(calibration, "run_in_process", run)
    monkeypatch.setattr(calibration, "_loaded", loaded)


def test_runs_with_levers_take_no_place_in_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, factor=1.4, noise=0.02)
    monkeypatch.setattr(calibration, "MOST_FITTED", len(CELLS))
    calibrate_device(CPU)
    machine = measured_runs.this_machine(CPU)
    for batch in range(1, 4):
        workload = CELLS[0].workload.replace(micro_batch=batch, levers=("fused",))
        measured_runs.record_run(machine, Candidate(workload=workload), [0.1] * 4, source="train")
    again = calibrate_device(CPU, with_cells=False)
    assert len(again.runs) == len(CELLS)
    assert again.to_json()["backbones"] == 3
    assert again.correction is not None
    assert again.to_json()["factors"]["products"] == pytest.approx(1.4, rel=0.02)


def test_runs_that_cannot_be_predicted_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, factor=1.4, noise=0.02)
    monkeypatch.setattr(calibration, "_loaded", lambda *_: [])
    assert calibrate_device(CPU).to_json()["runs"] == 0


def test_steady_cells_give_a_correction_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, factor=1.4, noise=0.02)
    found = calibrate_device(CPU)
    assert len(found.runs) == len(CELLS)
    assert all(cell.kept for cell in found.cells)
    assert found.is_used
    assert found.to_json()["factors"]["products"] == pytest.approx(1.4, rel=0.02)
    again = calibrate_device(CPU, with_cells=False)
    assert again.cells == ()
    assert len(again.runs) == len(CELLS)


def test_a_busy_machine_is_recognised_and_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, factor=1.4, noise=0.3)
    with pytest.raises(MeasurementError, match=r"6 differed by more than 10%.*machine is busy"):
        calibrate_device(CPU)
    assert calibrate_device(CPU, with_cells=False).runs == ()


def test_cells_that_do_not_run_are_not_blamed_on_a_busy_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer(monkeypatch, factor=1.0, noise=0.0)
    count, reason = len(CELLS), "no kernel image is available"
    nothing = CellsResult(
        seconds=((),) * count, clock="wall", reasons=(reason,) * count, waits=(0.0,) * count
    )
    monkeypatch.setattr(calibration, "run_in_process", lambda *_, **__: nothing)
    with pytest.raises(MeasurementError) as caught:
        calibrate_device(CPU)
    assert reason in str(caught.value)
    assert "busy" not in str(caught.value)


def test_a_cache_that_cannot_be_written_is_refused_before_anything_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, factor=1.0, noise=0.0)
    monkeypatch.setattr(calibration, "run_in_process", lambda *_, **__: pytest.fail("timed"))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BUDGETPLAN_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="BUDGETPLAN_CACHE"):
        calibrate_device(CPU)


def test_a_cell_that_waited_for_a_processor_is_not_kept_although_its_rounds_agree(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer(monkeypatch, factor=1.4, noise=0.0, wait=0.6)
    found = calibrate_device(CPU)
    assert [cell.kept for cell in found.cells] == [False] + [True] * (len(CELLS) - 1)
    assert found.cells[0].reason == "waited 60 % for a processor"
    assert found.to_json()["cells"][0]["waited"] == 0.6
    assert len(found.runs) == len(CELLS) - 1


def test_a_gpu_that_is_not_here_cannot_be_calibrated() -> None:
    with pytest.raises(DeviceError, match="not in this machine"):
        calibrate_device(device_spec("h200"))


def test_the_command_says_what_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, factor=2.0, noise=0.0)
    text = CliRunner().invoke(cli, ["calibrate", "--device", "cpu"])
    assert text.exit_code == 0, text.output
    assert "50.0 % without the correction and 0.0 % with it" in " ".join(text.stdout.split())
    done = CliRunner().invoke(cli, ["calibrate", "--device", "cpu", "--no-cells", "--json"])
    found = json.loads(done.stdout)
    assert found["schema"] == "budgetplan.device_calibration/1"
    assert found["is_used"] is True
    assert found["machine"]["device"] == "cpu"


def test_cells_run_on_this_processor() -> None:
    found = run_cells(CellsRequest(device="cpu", candidates=CELLS[:2], rounds=2), lambda *_: None)
    assert [len(seconds) for seconds in found.seconds] == [2, 2]
    assert all(value > 0 for seconds in found.seconds for value in seconds)
    assert found.reasons == ("", "")
    assert all(share >= 0 for share in found.waits)


def test_a_cell_that_fails_has_a_reason() -> None:
    broken = dataclasses.replace(CELLS[0], workload=CELLS[0].workload.replace(image_size=33))
    request = CellsRequest(device="cpu", candidates=(broken, CELLS[3]), rounds=1)
    found = run_cells(request, lambda *_: None)
    assert found.reasons[0]
    assert found.seconds[0] == ()
    assert len(found.seconds[1]) == 1


def test_cells_run_through_cudas_code_on_an_emulated_gpu() -> None:
    reason = libraries.why_not_emulated()
    if reason:
        pytest.skip(reason)
    found = run_in_process(
        run_cells,
        CellsRequest(device="cuda", candidates=CELLS[:1], rounds=1),
        CellsResult,
        timeout_seconds=START_SECONDS,
        environment=emulated_environment(device_spec("rtx-3060")),
    )
    assert found.reasons == ("",)
    assert found.clock == "wall"
    assert len(found.seconds[0]) == 1  # it runs; the time means nothing
