"""GPUs of this machine, with a library in NVML's place that answers with fixed integers."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from planner.target_device import STUDY_DEVICE, find_target
from profiler.devices import nvml as device
from profiler.devices.cuda_properties import CudaProperties, cuda_properties
from profiler.devices.energy_meter import EnergyMeter
from profiler.devices.nvml import (
    detect_gpu,
    find_gpus,
    open_gpu,
    visible_devices,
    why_no_gpu,
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
        ("MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", ("MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f",)),
        ("²,0", ()),
        ("9" * 5000, ()),
    ],
)
def test_visible_devices(text: str | None, expected: tuple[int | str, ...] | None) -> None:
    assert visible_devices(text) == expected


# --- NVML's border: a library that answers with fixed integers ------------------------------------


class NVMLError(Exception):
    value = 3  # not supported


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
        nvmlDeviceGetComputeRunningProcesses=lambda handle: [
            types.SimpleNamespace(pid=7, usedGpuMemory=900 * MIB),
            types.SimpleNamespace(pid=8, usedGpuMemory=None),  # as on Windows
        ],
    )


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.SimpleNamespace]:
    fake = fake_library()
    monkeypatch.setattr(device, "_nvml", lambda: fake)
    monkeypatch.setattr(device, "cuda_properties", lambda cuda_index: None)
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
    assert [t4.process_bytes(pid) for pid in (7, 8, 9)] == [900 * MIB, None, None]


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
    assert [open_gpu(0).nvml_name, open_gpu(1).nvml_name] == ["NVIDIA H200", "Tesla T4"]
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


# --- what NVML does not support comes from PyTorch ------------------------------------------------

GB10 = CudaProperties(name="NVIDIA GB10", memory_bytes=119 * GIB, major=12, minor=1)
SLICE = CudaProperties(
    name="NVIDIA A100-SXM4-40GB MIG 1g.5gb", memory_bytes=4864 * MIB, major=8, minor=0
)


def unsupported(*_: object) -> Any:
    raise NVMLError("Not Supported")


def lacking(library: types.SimpleNamespace, *functions: str) -> None:
    for function in functions:
        setattr(library, function, unsupported)


def torch_sees(monkeypatch: pytest.MonkeyPatch, seen: CudaProperties | None) -> None:
    monkeypatch.setattr(device, "cuda_properties", lambda cuda_index: seen)


def test_unified_memory_is_read_from_torch(
    library: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking(library, "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetTotalEnergyConsumption")
    library.nvmlDeviceGetName = lambda handle: b"NVIDIA GB10"
    library.nvmlDeviceGetCudaComputeCapability = lambda handle: (12, 1)
    torch_sees(monkeypatch, GB10)
    gpu = detect_gpu()
    assert gpu is not None
    assert (gpu.memory_bytes, gpu.used_bytes()) == (119 * GIB, None)
    assert gpu.counter_joules() is None
    assert gpu.power_watts() == pytest.approx(61.234)
    assert (gpu.spec.name, gpu.spec.memory_bytes) == ("gb10", 119 * GIB)
    torch_sees(monkeypatch, None)
    gpu = detect_gpu()
    assert gpu is not None  # found, with a memory that nobody reports
    assert gpu.spec.memory_bytes is None


@pytest.mark.parametrize(
    "function",
    [
        "nvmlDeviceGetName",
        "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetCudaComputeCapability",
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetTotalEnergyConsumption",
        "nvmlDeviceGetUUID",
        "nvmlDeviceGetMigMode",
    ],
)
@pytest.mark.parametrize("is_missing", [False, True])
def test_no_reading_is_needed(
    library: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch, function: str, is_missing: bool
) -> None:
    t4 = CudaProperties(name="Tesla T4", memory_bytes=15360 * MIB, major=7, minor=5)
    torch_sees(monkeypatch, t4)
    lacking(library, function)
    if is_missing:  # a binding older than the function
        delattr(library, function)
    gpu = detect_gpu()
    assert gpu is not None
    assert gpu.spec == lookup("t4")


def test_a_mig_slice_is_what_torch_sees(
    library: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_sees(monkeypatch, SLICE)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f")
    for _ in range(2):  # named by its UUID, then as the first slice of a divided GPU
        gpu = detect_gpu()
        assert gpu is not None
        assert (gpu.memory_bytes, gpu.spec.name) == (4864 * MIB, "a100-sxm4-40gb-mig-1g-5gb")
        assert (gpu.power_watts(), gpu.counter_joules(), gpu.used_bytes()) == (None, None, None)
        with EnergyMeter(gpu) as meter:
            pass
        assert (meter.energy.joules, meter.energy.method) == (None, "none")
        library.nvmlDeviceGetMigMode = lambda handle: (1, 1)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")


def refuses(value: int) -> Callable[[], Any]:
    """Return a door behind which NVML cannot be initialised, as the binding reports it."""

    def closed() -> Any:
        library = types.SimpleNamespace(
            NVML_ERROR_LIBRARY_NOT_FOUND=12, NVML_ERROR_DRIVER_NOT_LOADED=9
        )
        texts = {4: "Insufficient Permissions", 12: "NVML Shared Library Not Found"}
        error = NVMLError(texts[value])
        error.value = value
        raise device._not_reached(library, error)

    return closed


def test_what_was_found_and_what_is_missing_is_said(
    library: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    assert detect_gpu() is None
    found = "NVML does not report the MIG slice 'MIG-1'"
    assert why_no_gpu() == f"{found}; PyTorch cannot use it either"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    lacking(library, "nvmlDeviceGetCudaComputeCapability")
    library.nvmlDeviceGetName = lambda handle: "NVIDIA Future 1"
    assert detect_gpu() is None
    assert why_no_gpu() == (
        "NVIDIA Future 1 was found, but neither NVML nor PyTorch reports its compute capability"
    )
    lacking(library, "nvmlDeviceGetName")
    assert "GPU 0 was found, but neither NVML nor PyTorch reports its name" in why_no_gpu()
    monkeypatch.setattr(device, "_nvml", refuses(4))
    assert why_no_gpu().startswith(
        "there is an NVIDIA driver here, but NVML reports Insufficient Permissions"
    )
    target = find_target("auto")
    assert (target.runs_on, target.label.name) == ("cpu", STUDY_DEVICE)
    assert "NVML reports Insufficient Permissions" in target.label.note
    torch_sees(monkeypatch, GB10)  # without permission for NVML, CUDA may work all the same
    gpu = detect_gpu()
    assert gpu is not None and gpu.nvml_name == "NVIDIA GB10"


def test_torch_is_asked_only_where_a_driver_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_nvml", refuses(12))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    torch_sees(monkeypatch, GB10)
    monkeypatch.setattr(device, "has_device_file", lambda: False)
    assert detect_gpu() is None
    assert why_no_gpu() == "no GPU was found here"
    monkeypatch.setattr(device, "has_device_file", lambda: True)  # a Jetson, without NVML
    assert detect_gpu() is not None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert detect_gpu() is None
    assert why_no_gpu() == "no GPU was found here"


def test_torch_without_a_gpu_has_no_properties() -> None:
    if detect_gpu() is not None:
        pytest.skip("this machine has a GPU")
    assert cuda_properties(0) is None


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
