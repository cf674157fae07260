"""GPUs of this machine, with a library in NVML's place that answers with fixed integers."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Iterator

import pytest

from profiler.devices import nvml as device
from profiler.devices.energy_meter import EnergyMeter
from profiler.devices.nvml import (
    detect_gpu,
    find_gpus,
    open_gpu,
    visible_devices,
)
from profiler.devices.table import lookup
from profiler.errors import DeviceError
from profiler.units import GIB, MIB

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
    with pytest.raises(DeviceError, match=r"CUDA index 2 does not exist.*has 2 GPUs"):
        open_gpu(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-7")
    with pytest.raises(DeviceError, match=r"has the UUID .GPU-7."):
        open_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert detect_gpu() is None


def test_a_gpu_that_is_not_there_is_one_line(library: types.SimpleNamespace) -> None:
    with pytest.raises(DeviceError, match="cannot open GPU 5: NVML reports Invalid Argument"):
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
