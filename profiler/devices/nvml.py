"""The GPUs of this machine, through NVML: their names, memory, power and energy counters.

Pieces: `Gpu` (the readings that this program uses), `NvmlGpu` (a GPU of this machine), `TorchGpu`
(one that NVML does not report), `find_gpus`, `open_gpu` and `detect_gpu`.
`profiler.devices.recorded_gpu` has a GPU that needs no driver.

NVML answers "Not Supported" where a GPU lacks a reading: memory with unified memory (GB10), the
energy counter before Volta, nearly everything of a MIG slice. Name, memory and compute capability
then come from PyTorch (`profiler.devices.cuda_properties`); used bytes, power and energy are None.

NVML is loaded on first use. Importing this module needs no driver and never fails.
"""

from __future__ import annotations

import atexit
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Protocol

from profiler.devices.cuda_properties import CudaProperties, cuda_properties, has_device_file
from profiler.devices.table import DeviceSpec, match_nvml, short_name
from profiler.errors import DeviceError

_ARCHITECTURES = {(7, 0): "volta", (7, 5): "turing", (8, 9): "ada"}

_ARCHITECTURES_BY_MAJOR = {8: "ampere", 9: "hopper", 10: "blackwell", 12: "blackwell"}


_CHIP_SENSOR = 0
"""``NVML_TEMPERATURE_GPU`` of nvml.h."""


class Gpu(Protocol):
    """The readings of a GPU, real or recorded."""

    @property
    def source(self) -> str:
        """Interface that reports power and energy."""

    @property
    def nvml_name(self) -> str:
        """Name that the driver reports."""

    @property
    def memory_bytes(self) -> int | None:
        """Bytes of its memory; None if they cannot be read."""

    @property
    def compute_capability(self) -> tuple[int, int]:
        """(major, minor)."""

    @property
    def spec(self) -> DeviceSpec:
        """Its row of the device table; for other GPUs a row of the driver's data, without rates."""

    def used_bytes(self) -> int | None:
        """Bytes of memory in use by all processes; None if they cannot be read."""

    def power_watts(self) -> float | None:
        """Present power of the board in watts; None if it cannot be read."""

    def counter_joules(self) -> float | None:
        """Energy in joules since the driver was loaded; None if there is no counter."""

    def now_seconds(self) -> float:
        """Present time in seconds; only differences have a meaning."""

    def sleep(self, seconds: float) -> None:
        """Wait for some seconds of that clock."""


class NoGpuError(DeviceError):
    """There is no GPU, no driver, or ``CUDA_VISIBLE_DEVICES`` hides every GPU."""


# --- NVML -----------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _nvml() -> Any:
    """Return NVML's Python binding, loaded and initialised once.

    Raises:
        DeviceError: no driver, or no Python binding.
    """
    try:
        with warnings.catch_warnings():
            # The PyPI package `pynvml` warns on import that it is deprecated; `nvidia-ml-py`, which
            # has the same import name, does not.
            warnings.simplefilter("ignore", FutureWarning)
            import pynvml
    except ImportError as error:
        raise DeviceError(
            "the Python binding of NVML is missing; install nvidia-ml-py, or name a device"
            " to plan for with --device"
        ) from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise _not_reached(pynvml, error) from error
    atexit.register(_shut_down, pynvml)
    return pynvml


def _not_reached(pynvml: Any, error: Exception) -> DeviceError:
    """Return the error of a driver that does not answer: there is none, or it refuses."""
    if getattr(error, "value", None) in (
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    ):
        return NoGpuError(
            f"no NVIDIA GPU can be reached on this machine ({error}); name a device to plan for "
            "with --device, or use --device cpu"
        )
    return DeviceError(f"there is an NVIDIA driver here, but NVML reports {error}")


def _shut_down(pynvml: Any) -> None:
    """Close NVML at exit. An error is ignored: the driver may be gone by then."""
    try:
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return


@contextmanager
def _nvml_errors(action: str) -> Iterator[Any]:
    """Raise an error of NVML as a DeviceError that names the action."""
    pynvml = _nvml()
    try:
        yield pynvml
    except pynvml.NVMLError as error:
        raise DeviceError(f"cannot {action}: NVML reports {error}") from error


def _decoded(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


class NvmlGpu:
    """A GPU of this machine.

    Attributes:
        source: the interface, NVML.

    Args:
        index: number of the GPU in NVML, which counts in the order of the PCI bus.
        cuda_index: number of the same GPU in CUDA, by which PyTorch is asked for what NVML does not
            report; None if it has none.

    Raises:
        DeviceError: there is no such GPU, or its name is not known.
    """

    source = "nvml"

    def __init__(self, index: int = 0, cuda_index: int | None = None) -> None:
        with _nvml_errors(f"open GPU {index}") as pynvml:
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        self._pynvml = pynvml
        self.index = index
        self._cuda_index = cuda_index
        name = self._reading("nvmlDeviceGetName") or getattr(self._by_torch(), "name", None)
        if name is None:
            raise DeviceError(
                f"GPU {index} was found, but neither NVML nor PyTorch reports its name"
            )
        self._name = _decoded(name)

    @property
    def nvml_name(self) -> str:
        """Name that the driver reports."""
        return self._name

    @property
    def memory_bytes(self) -> int | None:
        """Bytes of its memory; None if neither NVML nor PyTorch reports them."""
        memory = self._reading("nvmlDeviceGetMemoryInfo")
        if memory is not None:
            return int(memory.total)
        seen = self._by_torch()
        return None if seen is None else seen.memory_bytes

    @property
    def uuid(self) -> str | None:
        """Unique identifier of the board; None if it cannot be read."""
        found = self._reading("nvmlDeviceGetUUID")
        return None if found is None else _decoded(found)

    @property
    def has_slices(self) -> bool:
        """Whether the GPU is divided into MIG slices. CUDA then uses a single slice."""
        mode = self._reading("nvmlDeviceGetMigMode")
        return mode is not None and bool(mode[0])

    @property
    def compute_capability(self) -> tuple[int, int]:
        """(major, minor).

        Raises:
            DeviceError: neither NVML nor PyTorch reports it.
        """
        found = self._reading("nvmlDeviceGetCudaComputeCapability")
        if found is not None:
            return int(found[0]), int(found[1])
        seen = self._by_torch()
        if seen is None:
            raise DeviceError(
                f"{self._name} was found, but neither NVML nor PyTorch reports its compute "
                "capability"
            )
        return seen.major, seen.minor

    @property
    def spec(self) -> DeviceSpec:
        """Its row of the device table; for other GPUs a row of the driver's data, without rates."""
        return spec_of(self)

    def used_bytes(self) -> int | None:
        """Bytes of memory in use by all processes; None if they cannot be read."""
        memory = self._reading("nvmlDeviceGetMemoryInfo")
        return None if memory is None else int(memory.used)

    def process_bytes(self, pid: int) -> int | None:
        """Return the bytes of memory that a process uses; None if they cannot be read.

        Args:
            pid: number of the process, by which the driver knows it.
        """
        for each in self._reading("nvmlDeviceGetComputeRunningProcesses") or ():
            if each.pid == pid and each.usedGpuMemory is not None:
                return int(each.usedGpuMemory)
        return None

    def power_watts(self) -> float | None:
        """Present power of the board in watts; None if it cannot be read."""
        milliwatts = self._reading("nvmlDeviceGetPowerUsage")
        return None if milliwatts is None else milliwatts / 1000

    def celsius(self) -> float | None:
        """Temperature of the chip in degrees Celsius; None if it cannot be read."""
        try:
            degrees = self._pynvml.nvmlDeviceGetTemperature(self._handle, _CHIP_SENSOR)
        except (self._pynvml.NVMLError, AttributeError):
            return None
        return float(degrees)

    def power_limit_watts(self) -> float | None:
        """Present power limit of the board in watts; None if it cannot be read."""
        milliwatts = self._reading("nvmlDeviceGetPowerManagementLimit")
        return None if milliwatts is None else milliwatts / 1000

    def set_power_limit(self, watts: float) -> None:
        """Set the power limit of the board, which NVML permits to an administrator only.

        Raises:
            DeviceError: the driver refuses.
        """
        with _nvml_errors(f"set a power limit of {watts:g} W") as pynvml:
            pynvml.nvmlDeviceSetPowerManagementLimit(self._handle, round(watts * 1000))

    def counter_joules(self) -> float | None:
        """Energy in joules since the driver was loaded; None if there is no counter."""
        millijoules = self._reading("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1000

    def now_seconds(self) -> float:
        """The machine's monotonic clock."""
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def _reading(self, function: str) -> Any:
        """Return the reading of a function of NVML; None if it is not supported or permitted."""
        # raised where the driver is too old for a function; older bindings lack the class
        too_old = getattr(self._pynvml, "NVMLLibraryMismatchError", self._pynvml.NVMLError)
        try:
            return getattr(self._pynvml, function)(self._handle)
        # AttributeError: a binding that lacks the function
        except (self._pynvml.NVMLError, too_old, AttributeError):
            return None

    def _by_torch(self) -> CudaProperties | None:
        return None if self._cuda_index is None else cuda_properties(self._cuda_index)


class TorchGpu:
    """A GPU or a MIG slice that NVML does not report, as PyTorch sees it: without power or energy.

    Args:
        seen: its properties.
    """

    source = "none"

    def __init__(self, seen: CudaProperties) -> None:
        self.nvml_name = seen.name
        self.memory_bytes: int | None = seen.memory_bytes
        self.compute_capability = (seen.major, seen.minor)

    @property
    def spec(self) -> DeviceSpec:
        """Its row of the device table; for other GPUs a row of PyTorch's data, without rates."""
        return spec_of(self)

    def used_bytes(self) -> int | None:
        """None: PyTorch reports the memory of its own process only."""

    def power_watts(self) -> float | None:
        """None: PyTorch reports no power."""

    def counter_joules(self) -> float | None:
        """None: PyTorch reports no energy."""

    def now_seconds(self) -> float:
        """Return the machine's monotonic clock."""
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


def spec_of(gpu: Gpu) -> DeviceSpec:
    """Return a GPU's row of the device table.

    For a GPU that is not in the table the row has the driver's data and no rates.
    """
    known = match_nvml(gpu.nvml_name, memory_bytes=gpu.memory_bytes)
    if known is not None:
        return known
    capability = gpu.compute_capability
    return DeviceSpec(
        name=short_name(gpu.nvml_name),
        full_name=gpu.nvml_name,
        architecture=_ARCHITECTURES.get(capability, _ARCHITECTURES_BY_MAJOR.get(capability[0])),
        compute_capability=capability,
        memory_bytes=gpu.memory_bytes,
        memory_bandwidth_bytes_per_second=None,
        fp32_flops=None,
        fp16_tensor_flops=None,
        bf16_tensor_flops=None,
        tf32_tensor_flops=None,
        tdp_watts=None,
        idle_watts=None,
        sm_count=None,
        nvml_names=(gpu.nvml_name.removeprefix("NVIDIA "),),
        source="the driver; this GPU is not in the device table",
    )


def find_gpus() -> tuple[NvmlGpu, ...]:
    """Return all GPUs of this machine, in NVML's order.

    Raises:
        DeviceError: no driver, or no GPU.
    """
    with _nvml_errors("count the GPUs") as pynvml:
        count = int(pynvml.nvmlDeviceGetCount())
    if count == 0:
        raise NoGpuError("the NVIDIA driver reports no GPU; name a device to plan for")
    return tuple(NvmlGpu(index) for index in range(count))


def driver_version() -> str | None:
    """Return the version of the NVIDIA driver; None if there is none or it does not answer."""
    try:
        with _nvml_errors("read the driver's version") as pynvml:
            return _decoded(pynvml.nvmlSystemGetDriverVersion())
    except (DeviceError, AttributeError):
        return None


def open_gpu(cuda_index: int = 0) -> Gpu:
    """Return the GPU with a CUDA index, which ``CUDA_VISIBLE_DEVICES`` maps to a GPU.

    Limitation: unless ``CUDA_DEVICE_ORDER`` is ``PCI_BUS_ID``, CUDA orders GPUs by speed and NVML
    by bus. On a machine with GPUs of several kinds the index may then mean another GPU.

    A MIG slice, and a GPU that NVML does not report, are opened as PyTorch sees them.

    Raises:
        DeviceError: no such GPU, or neither NVML nor PyTorch can use it. The message names
            the GPU and the missing reading.
    """
    try:
        return _open_by_nvml(cuda_index)
    except NoGpuError as error:
        seen = cuda_properties(cuda_index) if has_device_file() and not _is_hidden() else None
        if seen is None:
            raise error
    except DeviceError as error:
        seen = cuda_properties(cuda_index)
        if seen is None:
            raise DeviceError(f"{error}; PyTorch cannot use it either") from error
    return TorchGpu(seen)


def _open_by_nvml(cuda_index: int) -> NvmlGpu:
    visible = visible_devices(os.environ.get("CUDA_VISIBLE_DEVICES"))
    if visible is None:
        return _undivided(NvmlGpu(cuda_index, cuda_index))
    if cuda_index >= len(visible):
        raise NoGpuError(
            f"CUDA index {cuda_index} does not exist: CUDA_VISIBLE_DEVICES has {len(visible)} GPUs"
        )
    wanted = visible[cuda_index]
    if isinstance(wanted, int):
        return _undivided(NvmlGpu(wanted, cuda_index))
    if wanted.startswith("MIG-"):
        raise DeviceError(f"NVML does not report the MIG slice {wanted[:60]!r}")
    for gpu in find_gpus():
        if (gpu.uuid or "").startswith(wanted):
            return _undivided(NvmlGpu(gpu.index, cuda_index))
    raise DeviceError(f"no GPU of this machine has the UUID {wanted!r} of CUDA_VISIBLE_DEVICES")


def _undivided(gpu: NvmlGpu) -> NvmlGpu:
    """Return the GPU; refuse a GPU that is divided into slices.

    Raises:
        DeviceError: the GPU is divided into MIG slices.
    """
    if gpu.has_slices:
        raise DeviceError(
            f"{gpu.nvml_name} was found, divided into MIG slices; NVML reports their sum"
        )
    return gpu


def _is_hidden() -> bool:
    return visible_devices(os.environ.get("CUDA_VISIBLE_DEVICES")) == ()


def visible_devices(text: str | None) -> tuple[int | str, ...] | None:
    """Read ``CUDA_VISIBLE_DEVICES``: indices or UUIDs; None if it is not set.

    As in CUDA, an entry that names no GPU (``-1``) ends the list. UUIDs of MIG slices begin with
    ``MIG-``.
    """
    if text is None:
        return None
    found: list[int | str] = []
    for entry in (part.strip() for part in text.split(",")):
        if entry.isascii() and entry.isdigit() and len(entry) <= 9:
            found.append(int(entry))
        elif entry.startswith(("GPU-", "MIG-")):
            found.append(entry)
        else:
            break
    return tuple(found)


def detect_gpu(cuda_index: int = 0) -> Gpu | None:
    """Return the GPU with a CUDA index, the first by default, or None. Never raises.

    `why_no_gpu` returns the reason for None.
    """
    try:
        gpu = open_gpu(cuda_index)
        _ = gpu.spec  # a GPU that cannot be described cannot be planned for
        return gpu
    except DeviceError:
        return None


def why_no_gpu() -> str:
    """Return the reason for which `detect_gpu` returns None: the GPU and the missing reading."""
    try:
        _ = open_gpu().spec
    except NoGpuError:
        return "no GPU was found here"
    except DeviceError as error:
        return str(error)
    return "no GPU is used"
