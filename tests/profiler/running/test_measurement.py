"""Real runs: their peak is the replayed one, their cap holds, their report says what it is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from planner.cost.model import CostModel
from profiler.device_rules.cpu_allocator import peak_during
from profiler.devices import nvml
from profiler.devices.recorded_gpu import RecordedGpu, Sample
from profiler.devices.table import CPU, cuda_context, lookup
from profiler.environment import environment
from profiler.errors import DeviceError, OutOfMemoryError, UsageError
from profiler.placement import PolicyChoice
from profiler.prediction.report import predict
from profiler.records import Report, Rung
from profiler.running import measurement
from profiler.running.measurement import (
    Fetch,
    MeasuredSteps,
    MeasurementRequest,
    build_step,
    measure,
    measure_on_cuda,
    measure_on_host,
    report_measurement,
    run_measurement,
)
from profiler.store import Store
from profiler.training_step import TrainingStep
from profiler.units import GIB, MIB
from profiler.workload import Candidate, Workload

SMALL = Candidate(
    workload=Workload(model="test_vit", method="head", micro_batch=2, image_size=64, num_classes=10)
)


def silent(text: str, done: float) -> None:
    pass


def test_measured_in_a_process_equals_predicted() -> None:
    seen: list[float] = []
    report = measure(
        SMALL, device="cpu", steps=3, warmup=1, on_progress=lambda _, done: seen.append(done)
    )
    predicted = predict(SMALL, device=CPU)
    assert report.memory.peak_bytes == pytest.approx(predicted.memory.peak_bytes, abs=100)
    assert report.rung == Rung.MEASURED
    assert report.to_json()["schema"] == "budgetplan.measurement/1"
    assert report.parameters == predicted.parameters
    assert len(report.details["step_seconds"]) == 3
    assert report.step_seconds == sorted(report.details["step_seconds"])[1]
    assert report.flops is None
    assert Report.from_json(report.to_json()) == report
    assert seen == sorted(seen)


def test_a_cap_below_the_headroom_is_compared_with_the_peak() -> None:
    """The kernel's limit leaves 256 MiB of headroom, so it does not stop a step of a few MiB."""
    cap = predict(SMALL, device=CPU).memory.peak_bytes // 2
    with pytest.raises(OutOfMemoryError, match=r"exceeded its memory cap .* \(it used") as caught:
        measure(SMALL, device="cpu", cap_bytes=cap, steps=1, warmup=1)
    assert caught.value.exit_code == 6
    assert caught.value.cap_bytes == cap


@pytest.mark.parametrize("method", ["full", "lora"])
def test_an_eight_bit_optimizers_state_is_predicted(method: str) -> None:
    load = SMALL.workload.replace(method=method, optimizer="adamw8bit")
    eight_bit, plain = (
        Candidate(workload=load.replace(optimizer=name)) for name in ("adamw8bit", "adamw")
    )
    predicted = predict(eight_bit, device=CPU).memory
    request = MeasurementRequest(
        candidate=eight_bit, device="cpu", cap_bytes=None, steps=1, warmup=1
    )
    measured = run_measurement(request, silent)
    assert predicted.peak_bytes == pytest.approx(measured.peak_bytes, rel=0.001)
    of_plain = predict(plain, device=CPU).memory
    assert predicted.max_by_group is not None
    assert of_plain.max_by_group is not None
    assert predicted.max_by_group.optimizer < of_plain.max_by_group.optimizer


def test_a_run_beyond_its_cap_is_out_of_memory() -> None:
    # 1.2 GB of weights alone
    load = SMALL.workload.replace(model="vit_large_patch16_224")
    with pytest.raises(OutOfMemoryError, match="cap of 64 MiB"):
        measure(Candidate(workload=load), device="cpu", cap_bytes=64 * MIB)


def test_a_placement_that_fits_is_measured_under_its_budget() -> None:
    # convolutions take as much beside their tensors as imports do: the cap has room for one
    load = Workload(model="mobilenetv2_050", method="full", micro_batch=8, image_size=160)
    budget = 100 * MIB
    placed = CostModel(CPU, Store.default()).place(load, PolicyChoice("optimal"), budget)
    assert placed.placement.decisions
    report = measure(placed, device="cpu", cap_bytes=budget, steps=1)
    assert report.memory.peak_bytes < budget


def test_the_peak_is_that_of_a_steady_step() -> None:
    made: list[tuple[TrainingStep, list[Fetch]]] = []

    def run() -> None:
        step, batches = made[0]
        step.run(batches)

    def prepare() -> None:
        made.append(build_step(SMALL, device="cpu"))
        run()
        run()

    by_hand = peak_during(prepare, run)
    seen = measure_on_host(
        lambda: build_step(SMALL, device="cpu"), steps=2, warmup=1, progress=silent
    )
    assert seen.peak_bytes == by_hand
    assert len(seen.step_seconds) == 2
    assert seen.energy_joules is None


def test_the_recorded_peak_is_closed_form() -> None:
    held: list[torch.Tensor] = []

    def prepare() -> None:
        held.append(torch.zeros(1000))  # 4000 bytes
        del [torch.zeros(10**6)][0]

    def step() -> None:
        first = torch.zeros(500)  # 2000
        del first
        torch.zeros(750)  # 3000

    outside = torch.zeros(10**6)
    assert peak_during(prepare, step) == 4000 + 3000
    assert outside.nbytes == 4 * 10**6


def test_a_device_that_is_not_there() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    request = MeasurementRequest(candidate=SMALL, device="cuda", cap_bytes=None, steps=1, warmup=1)
    with pytest.raises(DeviceError, match="no CUDA device"):
        run_measurement(request, silent)


@pytest.mark.parametrize("counts", [{"steps": 0}, {"warmup": 0}])
def test_a_measurement_needs_steps(counts: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at least one"):
        measure(SMALL, device="cpu", **counts)


def test_what_a_process_sends_becomes_a_report() -> None:
    seen = MeasuredSteps(
        peak_bytes=10,
        reserved_bytes=20,
        device_bytes=30,
        step_seconds=(3.0, 1.0, 2.0),
        energy_joules=5.0,
        device_name="A Card",
        notes=("a note",),
        environment=environment(),
    )
    report = report_measurement(SMALL, seen, device="cuda")
    assert (report.device.full_name, report.device.kind) == ("A Card", "cuda")
    assert (report.memory.peak_bytes, report.memory.device_bytes) == (10, 30)
    assert (report.step_seconds, report.energy_joules) == (2.0, 5.0)
    assert report.memory.at_peak is None
    first, busy = report.notes
    assert first == "a note"
    assert "from 1 s to 3 s" in busy


def test_the_environment_is_named() -> None:
    found = environment()
    assert found.torch == str(torch.__version__)
    assert found.threads == torch.get_num_threads()
    assert found.processor


CUDA_READINGS: dict[str, Any] = {
    "synchronize": None, "reset_peak_memory_stats": None, "max_memory_reserved": 2,
    "max_memory_allocated": 1, "memory_reserved": 2, "mem_get_info": (1, GIB),
    "get_device_name": "made up",
}  # fmt: skip


def recorded_gpu(joules_per_tenth: float | None) -> RecordedGpu:
    """A GPU whose counter moves every 100 ms for 10 seconds; None for one without sensors."""
    samples = [
        Sample(
            seconds=tenth / 10, used_bytes=0, power_watts=None,
            counter_joules=None if joules_per_tenth is None else joules_per_tenth * tenth,
        )
        for tenth in range(101)
    ]  # fmt: skip
    return RecordedGpu(
        nvml_name="NVIDIA GeForce RTX 3090", memory_bytes=24 << 30, compute_capability=(8, 6),
        samples=samples, origin="made up",
    )  # fmt: skip


@pytest.mark.parametrize("joules_per_tenth", [10.0, None])
def test_short_steps_on_cuda_have_energy_where_there_is_a_sensor(
    joules_per_tenth: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five steps of 10 ms are shorter than the sensor's period; the repeated ones are not."""
    gpu = recorded_gpu(joules_per_tenth)
    for name, found in CUDA_READINGS.items():
        monkeypatch.setattr(torch.cuda, name, lambda found=found: found)
    opened = iter([gpu])  # once: a second opening ends the test
    monkeypatch.setattr(nvml, "open_gpu", lambda: next(opened))
    monkeypatch.setattr(measurement, "time", SimpleNamespace(perf_counter=gpu.now_seconds))
    step: Any = SimpleNamespace(run=lambda batches: gpu.sleep(0.01))
    steps = measure_on_cuda(
        lambda: (step, []), steps=5, warmup=1, progress=silent, repeats_for_energy=True
    )
    assert steps.step_seconds == pytest.approx([0.01] * 5)
    context = cuda_context(lookup("rtx-3090")).nbytes
    assert steps.device_bytes == CUDA_READINGS["max_memory_reserved"] + context
    if joules_per_tenth is None:
        assert (steps.energy, steps.energy_joules) == (None, None)
        assert any("neither energy nor power" in note for note in steps.notes)
        return
    assert steps.energy is not None
    assert steps.energy_joules == steps.energy.joules == pytest.approx(1.0, rel=0.02)
    assert not any("shorter than the sensor" in note for note in steps.notes)
