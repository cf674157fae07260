"""Recordings are written and read whole, and damaged ones are refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_up_gpus import MADE_UP, made_up_gpu

from profiler.devices.energy_meter import COUNTER_PERIOD_SECONDS, EnergyMeter
from profiler.devices.recorded_gpu import RecordedGpu, Sample, record
from profiler.devices.table import lookup
from profiler.errors import InputError
from profiler.units import GIB, MIB


def test_a_recording_survives_its_file(tmp_path: Path) -> None:
    gpu = made_up_gpu(seconds=1.0)
    gpu.save(tmp_path / "gpu.json")
    again = RecordedGpu.load(tmp_path / "gpu.json")
    assert again.samples == gpu.samples
    assert (again.nvml_name, again.memory_bytes) == (gpu.nvml_name, gpu.memory_bytes)
    assert (again.compute_capability, again.origin) == ((7, 5), MADE_UP)


def test_recording_a_recording_gives_it_back() -> None:
    gpu = made_up_gpu(seconds=2.0)
    again = record(gpu, seconds=2.0, origin=MADE_UP, period_seconds=COUNTER_PERIOD_SECONDS)
    assert [s.counter_joules for s in again.samples] == [s.counter_joules for s in gpu.samples]
    assert [s.seconds for s in again.samples] == pytest.approx([s.seconds for s in gpu.samples])


def test_the_shipped_recording_is_read_and_says_it_is_made_up() -> None:
    gpu = RecordedGpu.load(Path(__file__).with_name("made_up_gpu.json"))
    assert "made up" in gpu.origin
    assert gpu.spec is lookup("rtx-2060-super")
    with EnergyMeter(gpu) as meter:
        gpu.sleep(1.0)
    assert meter.energy.joules == pytest.approx(60.0)
    assert gpu.used_bytes() == 900 * MIB


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", '{"schema": "other/1"}', '{"schema": "budgetplan.device-recording/1"}'],
)
def test_a_damaged_recording_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(InputError, match="is not a device recording"):
        RecordedGpu.load(path)


def test_a_missing_recording_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a device recording"):
        RecordedGpu.load(tmp_path / "none.json")


def test_samples_must_be_in_order() -> None:
    late = Sample(seconds=1.0, used_bytes=0, power_watts=1.0, counter_joules=None)
    with pytest.raises(InputError, match="first at 0 s"):
        RecordedGpu(
            nvml_name="x", memory_bytes=1, compute_capability=(8, 0), samples=[late], origin=""
        )


def test_a_gpu_outside_the_table_has_no_invented_numbers() -> None:
    sample = Sample(seconds=0.0, used_bytes=0, power_watts=1.0, counter_joules=None)
    gpu = RecordedGpu(
        nvml_name="NVIDIA GeForce RTX 5090 D",
        memory_bytes=32 * GIB,
        compute_capability=(12, 0),
        samples=[sample],
        origin=MADE_UP,
    )
    spec = gpu.spec
    assert (spec.name, spec.architecture) == ("rtx-5090-d", "blackwell")
    assert (spec.memory_bytes, spec.compute_capability) == (32 * GIB, (12, 0))
    assert (spec.fp32_flops, spec.memory_bandwidth_bytes_per_second, spec.tdp_watts) == (None,) * 3
