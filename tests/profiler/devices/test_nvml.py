"""GPUs, real and recorded. The recordings here are made up: power by a formula, no real board."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from profiler.devices import nvml as device
from profiler.devices.nvml import (
    COUNTER_PERIOD_SECONDS,
    EnergyMeter,
    RecordedGpu,
    Sample,
    detect_gpu,
    find_gpus,
    open_gpu,
    record,
    trapezoid_joules,
    visible_devices,
)
from profiler.devices.table import lookup
from profiler.errors import DeviceError, InputError
from profiler.units import GIB, MIB

MADE_UP = "made up for tests: constant power, a counter that moves every 100 ms"


def made_up_gpu(
    *, watts: float | None = 150.0, counts: bool = True, seconds: float = 20.0
) -> RecordedGpu:
    steps = round(seconds / COUNTER_PERIOD_SECONDS)
    return RecordedGpu(
        nvml_name="NVIDIA GeForce RTX 2060 SUPER",
        memory_bytes=8192 * MIB,
        compute_capability=(7, 5),
        origin=MADE_UP,
        samples=[
            Sample(
                seconds=step * COUNTER_PERIOD_SECONDS,
                used_bytes=GIB,
                power_watts=watts,
                counter_joules=1000 + 15.0 * step if counts else None,
            )
            for step in range(steps + 1)
        ],
    )


# --- energy ---------------------------------------------------------------------------------------


def test_energy_is_the_difference_of_the_counter() -> None:
    gpu = made_up_gpu()
    gpu.sleep(3.0)
    with EnergyMeter(gpu) as meter:
        gpu.sleep(2.0)
    energy = meter.energy
    assert energy.method == "counter"
    assert energy.joules == pytest.approx(300.0)
    assert energy.watts == pytest.approx(150.0)
    assert energy.seconds == pytest.approx(2.0)
    assert energy.resolution == pytest.approx(0.05)
    assert energy.reason is None


def test_the_counter_stands_still_between_its_updates() -> None:
    gpu = made_up_gpu()
    gpu.sleep(0.05)
    with EnergyMeter(gpu) as meter:
        gpu.sleep(0.99)  # 0.05 to 1.04: the counter has moved ten times, at 0.1, ..., 1.0
    energy = meter.energy
    assert energy.joules == pytest.approx(150.0)
    true_joules = 0.99 * 150
    assert energy.resolution is not None
    assert abs(energy.joules / true_joules - 1) <= energy.resolution


def test_windows_below_the_period_are_refused() -> None:
    gpu = made_up_gpu()
    with EnergyMeter(gpu) as meter:
        gpu.sleep(0.099)
    assert meter.energy.joules is None
    assert meter.energy.watts is None
    assert "99 ms is shorter than the sensor's period of about 100 ms" in str(meter.energy.reason)


def test_a_counter_that_stands_still_is_no_zero() -> None:
    gpu = made_up_gpu(seconds=0.0)
    with EnergyMeter(gpu) as meter:
        gpu.sleep(5.0)
    assert meter.energy.joules is None
    assert "did not move" in str(meter.energy.reason)


def test_a_reset_counter_is_no_negative_energy() -> None:
    samples = [
        Sample(seconds=0.0, used_bytes=0, power_watts=None, counter_joules=500.0),
        Sample(seconds=1.0, used_bytes=0, power_watts=None, counter_joules=3.0),
    ]
    gpu = RecordedGpu(
        nvml_name="x", memory_bytes=1, compute_capability=(7, 5), samples=samples, origin=MADE_UP
    )
    with EnergyMeter(gpu) as meter:
        gpu.sleep(1.5)
    assert meter.energy.joules is None
    assert "reset" in str(meter.energy.reason)


def test_without_a_counter_power_is_integrated() -> None:
    gpu = made_up_gpu(counts=False)
    with EnergyMeter(gpu) as meter:
        gpu.sleep(4.0)
    energy = meter.energy
    assert energy.method == "power"
    assert energy.joules == pytest.approx(600.0)


def test_power_readings_are_refused_below_the_period_too() -> None:
    gpu = made_up_gpu(counts=False)
    with EnergyMeter(gpu) as meter:
        gpu.sleep(0.01)
    assert meter.energy.joules is None
    assert meter.energy.method == "power"


def test_a_gpu_without_sensors_says_so() -> None:
    gpu = made_up_gpu(counts=False, watts=None)
    with EnergyMeter(gpu) as meter:
        gpu.sleep(4.0)
    assert (meter.energy.joules, meter.energy.method) == (None, "none")
    assert meter.energy.reason == "this GPU reports neither energy nor power"


def test_power_that_fails_inside_the_window_gives_no_number() -> None:
    samples = [
        Sample(seconds=0.0, used_bytes=0, power_watts=50.0, counter_joules=None),
        Sample(seconds=1.0, used_bytes=0, power_watts=None, counter_joules=None),
    ]
    gpu = RecordedGpu(
        nvml_name="x", memory_bytes=1, compute_capability=(7, 5), samples=samples, origin=MADE_UP
    )
    meter = EnergyMeter(gpu)
    with meter:
        gpu.sleep(2.0)
    assert meter.energy.joules is None
    assert meter.energy.reason == "the power reading failed in the window"


def test_a_meter_can_be_used_again_and_synchronises_at_both_ends() -> None:
    gpu = made_up_gpu()
    calls: list[float] = []
    meter = EnergyMeter(gpu, synchronize=lambda: calls.append(gpu.now_seconds()))
    with pytest.raises(DeviceError, match="no window"):
        _ = meter.energy
    for seconds in (1.0, 3.0):
        with meter:
            gpu.sleep(seconds)
        assert meter.energy.joules == pytest.approx(150 * seconds)
    assert calls == [0.0, 1.0, 1.0, 4.0]


def test_an_error_inside_the_window_is_not_swallowed() -> None:
    gpu = made_up_gpu(counts=False)
    with pytest.raises(ZeroDivisionError), EnergyMeter(gpu):
        _ = 1 / 0


def test_trapezoid_is_exact_for_a_ramp() -> None:
    # power 2t from 0 to 10 s, at uneven times: the integral is 100 J
    times = [0.0, 0.3, 1.0, 4.5, 4.6, 10.0]
    assert trapezoid_joules([(t, 2 * t) for t in times]) == pytest.approx(100.0)
    assert trapezoid_joules([(0.0, 5.0)]) == 0


# --- recordings -----------------------------------------------------------------------------------


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
        nvml_name="NVIDIA GeForce RTX 5090",
        memory_bytes=32 * GIB,
        compute_capability=(12, 0),
        samples=[sample],
        origin=MADE_UP,
    )
    spec = gpu.spec
    assert (spec.name, spec.architecture) == ("rtx-5090", "blackwell")
    assert (spec.memory_bytes, spec.compute_capability) == (32 * GIB, (12, 0))
    assert (spec.fp32_flops, spec.memory_bandwidth_bytes_per_second, spec.tdp_watts) == (None,) * 3


# --- CUDA_VISIBLE_DEVICES -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("", ()),
        ("0", (0,)),
        ("2, 0", (2, 0)),
        ("1,-1,3", (1,)),
        ("GPU-8932f937,1", ("GPU-8932f937", 1)),
    ],
)
def test_visible_devices(text: str | None, expected: tuple[int | str, ...] | None) -> None:
    assert visible_devices(text) == expected


def test_a_mig_slice_is_refused() -> None:
    with pytest.raises(DeviceError, match="MIG"):
        visible_devices("MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f")


# --- NVML's border: a library that answers with fixed integers ------------------------------------


class NVMLError(Exception):
    pass


def fake_library(*, gpus: int = 2, counts: bool = True) -> types.SimpleNamespace:
    def energy(handle: int) -> int:
        if not counts:
            raise NVMLError("Not Supported")
        return 123456 + handle

    def handle_by_index(index: int) -> int:
        if index >= gpus:
            raise NVMLError("Invalid Argument")
        return index

    return types.SimpleNamespace(
        NVMLError=NVMLError,
        nvmlDeviceGetCount=lambda: gpus,
        nvmlDeviceGetHandleByIndex=handle_by_index,
        nvmlDeviceGetName=lambda handle: b"NVIDIA H200" if handle else "Tesla T4",
        nvmlDeviceGetMemoryInfo=lambda handle: types.SimpleNamespace(
            total=(143771 if handle else 15360) * MIB, used=3 * MIB
        ),
        nvmlDeviceGetUUID=lambda handle: f"GPU-{handle}000",
        nvmlDeviceGetCudaComputeCapability=lambda handle: (9, 0) if handle else (7, 5),
        nvmlDeviceGetPowerUsage=lambda handle: 61234,
        nvmlDeviceGetTotalEnergyConsumption=energy,
    )


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.SimpleNamespace]:
    fake = fake_library()
    monkeypatch.setattr(device, "_nvml", lambda: fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield fake


def test_readings_are_converted_to_si_units(library: types.SimpleNamespace) -> None:
    t4, h200 = find_gpus()
    assert (t4.nvml_name, h200.nvml_name) == ("Tesla T4", "NVIDIA H200")
    assert (t4.spec, h200.spec) == (lookup("t4"), lookup("h200"))
    assert t4.power_watts() == pytest.approx(61.234)
    assert t4.counter_joules() == pytest.approx(123.456)
    assert (t4.memory_bytes, t4.used_bytes()) == (15360 * MIB, 3 * MIB)
    assert (h200.compute_capability, h200.uuid) == ((9, 0), "GPU-1000")


def test_what_nvml_does_not_support_is_none(
    library: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_nvml", lambda: fake_library(counts=False))
    assert open_gpu().counter_joules() is None
    assert open_gpu().power_watts() is not None


def test_visible_devices_choose_the_gpu(
    library: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert open_gpu().nvml_name == "NVIDIA H200"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-10,0")
    assert [open_gpu(0).index, open_gpu(1).index] == [1, 0]
    with pytest.raises(DeviceError, match="shows 2 GPUs, number 2"):
        open_gpu(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-7")
    with pytest.raises(DeviceError, match="no GPU here has that UUID"):
        open_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert detect_gpu() is None


def test_a_gpu_that_is_not_there_is_one_line(library: types.SimpleNamespace) -> None:
    with pytest.raises(DeviceError, match="cannot open GPU 5: NVML says Invalid Argument"):
        open_gpu(5)


def test_a_driver_without_gpus_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_nvml", lambda: fake_library(gpus=0))
    with pytest.raises(DeviceError, match="reports no GPU"):
        find_gpus()


# --- this machine ---------------------------------------------------------------------------------


def test_without_a_gpu_the_error_says_what_to_do() -> None:
    if detect_gpu() is not None:
        pytest.skip("this machine has a GPU")
    with pytest.raises(DeviceError, match="--device"):
        find_gpus()


def test_importing_loads_neither_nvml_nor_torch() -> None:
    code = (
        "import sys, profiler.devices.nvml, profiler.device_rules.caching_allocator;"
        "sys.exit(bool({'torch', 'pynvml', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], check=False).returncode == 0


@pytest.mark.gpu
def test_a_real_gpu_answers() -> None:
    gpu = detect_gpu()
    if gpu is None:
        pytest.skip("no GPU")
    assert gpu.memory_bytes > GIB
    assert gpu.spec.compute_capability == gpu.compute_capability
    with EnergyMeter(gpu) as meter:
        gpu.sleep(1.0)
    energy = meter.energy
    assert energy.joules is None or 1 < energy.joules < 2000
