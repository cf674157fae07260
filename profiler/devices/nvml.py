"""The GPUs of this machine, through NVML: their names, memory, power and energy counters.

Pieces: `Gpu` (the readings that this program uses), `NvmlGpu` (a GPU of this machine), `find_gpus`,
`open_gpu` and `detect_gpu`. `profiler.devices.recorded_gpu` has a GPU that needs no driver.

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

from profiler.devices.table import DeviceSpec, match_nvml, short_name
from profiler.errors import DeviceError

_ARCHITECTURES = {(7, 0): "volta", (7, 5): "turing", (8, 9): "ada"}

_ARCHITECTURES_BY_MAJOR = {8: "ampere", 9: "hopper", 10: "blackwell", 12: "blackwell"}


class Gpu(Protocol):
    """The readings of a GPU, real or recorded."""

    @property
    def nvml_name(self) -> str:
        """Name that the driver reports."""

    @property
    def memory_bytes(self) -> int:
        """Bytes of its memory."""

    @property
    def compute_capability(self) -> tuple[int, int]:
        """(major, minor)."""

    @property
    def spec(self) -> DeviceSpec:
        """Its row of the device table; for other GPUs a row of the driver's data, without rates."""

    def used_bytes(self) -> int:
        """Bytes of memory in use by all processes."""

    def power_watts(self) -> float | None:
        """Present power of the board in watts; None if it cannot be read."""

    def counter_joules(self) -> float | None:
        """Energy in joules since the driver was loaded; None if there is no counter."""

    def now_seconds(self) -> float:
        """Present time in seconds; only differences have a meaning."""

    def sleep(self, seconds: float) -> None:
        """Wait for some seconds of that clock."""


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
        raise DeviceError(
            f"no NVIDIA GPU can be reached on this machine ({error}); name a device to plan for"
            " with --device, or use --device cpu"
        ) from error
    atexit.register(_shut_down, pynvml)
    return pynvml


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
    return value.decode() if isinstance(value, bytes) else value


class NvmlGpu:
    """A GPU of this machine.

    Args:
        index: number of the GPU in NVML, which counts in the order of the PCI bus.

    Raises:
        DeviceError: there is no such GPU.
    """

    def __init__(self, index: int = 0) -> None:
        with _nvml_errors(f"open GPU {index}") as pynvml:
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            self._name = _decoded(pynvml.nvmlDeviceGetName(self._handle))
            self._memory_bytes = int(pynvml.nvmlDeviceGetMemoryInfo(self._handle).total)
        self._pynvml = pynvml
        self.index = index

    @property
    def nvml_name(self) -> str:
        """Name that the driver reports."""
        return self._name

    @property
    def memory_bytes(self) -> int:
        """Bytes of its memory."""
        return self._memory_bytes

    @property
    def uuid(self) -> str:
        """Unique identifier of the board."""
        with _nvml_errors("read the GPU's UUID") as pynvml:
            return _decoded(pynvml.nvmlDeviceGetUUID(self._handle))

    @property
    def compute_capability(self) -> tuple[int, int]:
        """(major, minor)."""
        with _nvml_errors("read the GPU's compute capability") as pynvml:
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(self._handle)
            return int(major), int(minor)

    @property
    def spec(self) -> DeviceSpec:
        """Its row of the device table; for other GPUs a row of the driver's data, without rates."""
        return spec_of(self)

    def used_bytes(self) -> int:
        """Bytes of memory in use by all processes."""
        with _nvml_errors("read the GPU's memory") as pynvml:
            return int(pynvml.nvmlDeviceGetMemoryInfo(self._handle).used)

    def power_watts(self) -> float | None:
        """Present power of the board in watts; None if it cannot be read."""
        milliwatts = self._reading("nvmlDeviceGetPowerUsage")
        return None if milliwatts is None else milliwatts / 1000

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

    def _reading(self, function: str) -> int | None:
        try:
            return int(getattr(self._pynvml, function)(self._handle))
        except self._pynvml.NVMLError:
            return None


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
        raise DeviceError("the NVIDIA driver reports no GPU; name a device to plan for")
    return tuple(NvmlGpu(index) for index in range(count))


def open_gpu(cuda_index: int = 0) -> NvmlGpu:
    """Return the GPU with a CUDA index, which ``CUDA_VISIBLE_DEVICES`` maps to a GPU.

    Limitation: unless ``CUDA_DEVICE_ORDER`` is ``PCI_BUS_ID``, CUDA orders GPUs by speed and NVML
    by bus. On a machine with GPUs of several kinds the index may then mean another GPU.

    Raises:
        DeviceError: no such GPU, or a MIG slice, whose power cannot be read on its own.
    """
    visible = visible_devices(os.environ.get("CUDA_VISIBLE_DEVICES"))
    if visible is None:
        return NvmlGpu(cuda_index)
    if cuda_index >= len(visible):
        raise DeviceError(
            f"CUDA index {cuda_index} does not exist: CUDA_VISIBLE_DEVICES has {len(visible)} GPUs"
        )
    wanted = visible[cuda_index]
    if isinstance(wanted, int):
        return NvmlGpu(wanted)
    for gpu in find_gpus():
        if gpu.uuid.startswith(wanted):
            return gpu
    raise DeviceError(f"no GPU of this machine has the UUID {wanted!r} of CUDA_VISIBLE_DEVICES")


def visible_devices(text: str | None) -> tuple[int | str, ...] | None:
    """Read ``CUDA_VISIBLE_DEVICES``: indices or UUIDs; None if it is not set.

    As in CUDA, an entry that names no GPU (``-1``) ends the list.

    Raises:
        DeviceError: an entry is a MIG slice.
    """
    if text is None:
        return None
    found: list[int | str] = []
    for entry in (part.strip() for part in text.split(",")):
        if entry.startswith("MIG-"):
            raise DeviceError("a MIG slice is not supported: its power cannot be read on its own")
        if entry.isdigit():
            found.append(int(entry))
        elif entry.startswith("GPU-"):
            found.append(entry)
        else:
            break
    return tuple(found)


def detect_gpu() -> NvmlGpu | None:
    """Return the first GPU that CUDA would use, or None. Never raises."""
    try:
        return open_gpu()
    except DeviceError:
        return None
