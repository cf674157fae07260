"""The one door to NVML: which GPUs are there, what they hold, and what they draw.

Pieces: `find_gpus`, `open_gpu` and `detect_gpu` (the machine's GPUs), `NvmlGpu` (one of them),
`RecordedGpu` (a recording in its place, so that nothing here needs a GPU to be tested),
`record` (make one), `EnergyMeter` (joules of a window).

How energy is read. From Volta on the driver counts millijoules since it was loaded
(`nvmlDeviceGetTotalEnergyConsumption`); the difference of two readings is the energy. Where there
is no counter (older GPUs, many vGPUs) a thread reads `nvmlDeviceGetPowerUsage` and the trapezoid
rule integrates it.

Known limits. The counter moves about every 100 ms
(https://ml.energy/blog/energy/measurement/thermally-stable-profiling-for-accurate-gpu-energy-measurement),
so a window is known to about one period at either end: `Energy.resolution` says how much that is,
and a window of less than a period is refused. On A100 and H100 the sensor looks at a quarter of the
time only (https://arxiv.org/abs/2312.02741): repeat, and take long windows. From Ampere on
`nvmlDeviceGetPowerUsage` is an average over a second (except GA100), per NVML's documentation. The
whole board is measured, so another process on it counts too.

NVML is loaded on first use. Importing this module needs no driver and never fails.
"""

from __future__ import annotations

import atexit
import json
import os
import threading
import time
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from profiler.devices.table import DeviceSpec, match_nvml, short_name
from profiler.errors import DeviceError, InputError

COUNTER_PERIOD_SECONDS = 0.1  # ml.energy, see above

POLL_SECONDS = 0.05  # half the period at which NVML's power reading changes

_COVERED = 0.9  # share of a window that power readings must span to stand for it

RECORDING_SCHEMA = "budgetplan.device-recording/1"

_ARCHITECTURES = {(7, 0): "volta", (7, 5): "turing", (8, 9): "ada"}

_ARCHITECTURES_BY_MAJOR = {8: "ampere", 9: "hopper", 10: "blackwell", 12: "blackwell"}


class Gpu(Protocol):
    """What the rest of the package asks of a GPU, real or recorded."""

    @property
    def nvml_name(self) -> str:
        """What the driver calls it."""

    @property
    def memory_bytes(self) -> int:
        """All of its memory."""

    @property
    def compute_capability(self) -> tuple[int, int]:
        """(major, minor)."""

    @property
    def spec(self) -> DeviceSpec:
        """Its row of the device table, or what the driver knows of it."""

    def used_bytes(self) -> int:
        """Memory that all processes hold now."""

    def power_watts(self) -> float | None:
        """What the board draws now; None where it cannot be read."""

    def counter_joules(self) -> float | None:
        """Energy since the driver was loaded; None where it is not counted."""

    def now_seconds(self) -> float:
        """A clock that only differences mean something of."""

    def sleep(self, seconds: float) -> None:
        """Let that much of its time pass."""


# --- NVML -----------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _nvml() -> Any:
    """The library, loaded and initialised once.

    Raises:
        DeviceError: no driver, or no Python binding.
    """
    try:
        with warnings.catch_warnings():
            # the package `pynvml` announces its end on import; `nvidia-ml-py` is silent
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
    """Close NVML at exit; by then the driver may be gone, which no longer matters."""
    try:
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return


@contextmanager
def _nvml_errors(doing: str) -> Iterator[Any]:
    """Turn NVML's errors into ours."""
    pynvml = _nvml()
    try:
        yield pynvml
    except pynvml.NVMLError as error:
        raise DeviceError(f"cannot {doing}: NVML says {error}") from error


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


class NvmlGpu:
    """A GPU of this machine.

    Args:
        index: its number in NVML, which counts in the order of the PCI bus.

    Raises:
        DeviceError: there is no such GPU.
    """

    def __init__(self, index: int = 0) -> None:
        with _nvml_errors(f"open GPU {index}") as pynvml:
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            self._name = _text(pynvml.nvmlDeviceGetName(self._handle))
            self._memory_bytes = int(pynvml.nvmlDeviceGetMemoryInfo(self._handle).total)
        self._pynvml = pynvml
        self.index = index

    @property
    def nvml_name(self) -> str:
        """What the driver calls it."""
        return self._name

    @property
    def memory_bytes(self) -> int:
        """All of its memory."""
        return self._memory_bytes

    @property
    def uuid(self) -> str:
        """The name that stays with the board."""
        with _nvml_errors("read the GPU's UUID") as pynvml:
            return _text(pynvml.nvmlDeviceGetUUID(self._handle))

    @property
    def compute_capability(self) -> tuple[int, int]:
        """(major, minor)."""
        with _nvml_errors("read the GPU's compute capability") as pynvml:
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(self._handle)
            return int(major), int(minor)

    @property
    def spec(self) -> DeviceSpec:
        """Its row of the device table, or what the driver knows of it."""
        return _spec_of(self)

    def used_bytes(self) -> int:
        """Memory that all processes hold now."""
        with _nvml_errors("read the GPU's memory") as pynvml:
            return int(pynvml.nvmlDeviceGetMemoryInfo(self._handle).used)

    def power_watts(self) -> float | None:
        """What the board draws now; None where it cannot be read."""
        milliwatts = self._reading("nvmlDeviceGetPowerUsage")
        return None if milliwatts is None else milliwatts / 1000

    def counter_joules(self) -> float | None:
        """Energy since the driver was loaded; None where it is not counted."""
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


def _spec_of(gpu: Gpu) -> DeviceSpec:
    """Its row of the table; for a GPU that is not there what its driver says, and no speed."""
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
        source="what the driver reports; not in the device table",
    )


def find_gpus() -> tuple[NvmlGpu, ...]:
    """All GPUs of this machine, in NVML's order.

    Raises:
        DeviceError: no driver, or no GPU.
    """
    with _nvml_errors("count the GPUs") as pynvml:
        count = int(pynvml.nvmlDeviceGetCount())
    if count == 0:
        raise DeviceError("the NVIDIA driver reports no GPU; name a device to plan for")
    return tuple(NvmlGpu(index) for index in range(count))


def open_gpu(cuda_index: int = 0) -> NvmlGpu:
    """The GPU that CUDA calls `cuda_index`, with ``CUDA_VISIBLE_DEVICES`` as it is set.

    Where CUDA orders GPUs by speed (``CUDA_DEVICE_ORDER`` not PCI_BUS_ID) and they differ, the
    number may mean another one; set it when a machine has several kinds.

    Raises:
        DeviceError: no such GPU, or a MIG slice, whose power cannot be told from its board's.
    """
    visible = visible_devices(os.environ.get("CUDA_VISIBLE_DEVICES"))
    if visible is None:
        return NvmlGpu(cuda_index)
    if cuda_index >= len(visible):
        raise DeviceError(
            f"CUDA_VISIBLE_DEVICES shows {len(visible)} GPUs, number {cuda_index} was asked for"
        )
    wanted = visible[cuda_index]
    if isinstance(wanted, int):
        return NvmlGpu(wanted)
    for gpu in find_gpus():
        if gpu.uuid.startswith(wanted):
            return gpu
    raise DeviceError(f"CUDA_VISIBLE_DEVICES names {wanted!r}, and no GPU here has that UUID")


def visible_devices(text: str | None) -> tuple[int | str, ...] | None:
    """Read ``CUDA_VISIBLE_DEVICES``: numbers or UUIDs; None where it is not set.

    As in CUDA, what follows an entry that is no GPU (``-1``) is not visible either.

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
    """The first GPU CUDA would use here, or None. Never raises."""
    try:
        return open_gpu()
    except DeviceError:
        return None


# --- recordings -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One reading of everything.

    Attributes:
        seconds: when, from the start of the recording.
        used_bytes: memory in use.
        power_watts: power, where it can be read.
        counter_joules: the energy counter, where there is one.
    """

    seconds: float
    used_bytes: int
    power_watts: float | None
    counter_joules: float | None


class RecordedGpu:
    """A recording that answers like a GPU; its time passes by `sleep` only.

    A reading is that of the last sample at or before now: a recorded counter stands still between
    its updates, as the real one does.

    Args:
        nvml_name: what the driver called it.
        memory_bytes: all of its memory.
        compute_capability: (major, minor).
        samples: ascending in time, the first at 0.
        origin: where the recording is from; says so if it is made up.
    """

    def __init__(
        self,
        *,
        nvml_name: str,
        memory_bytes: int,
        compute_capability: tuple[int, int],
        samples: Sequence[Sample],
        origin: str,
    ) -> None:
        times = [sample.seconds for sample in samples]
        if not times or times != sorted(times) or times[0] != 0:
            raise InputError("a recording needs samples in order of time, the first at 0 s")
        self.nvml_name = nvml_name
        self.memory_bytes = memory_bytes
        self.compute_capability = compute_capability
        self.samples = tuple(samples)
        self.origin = origin
        self._times = times
        self._now = 0.0

    @property
    def spec(self) -> DeviceSpec:
        """Its row of the device table, or what the recording says of it."""
        return _spec_of(self)

    def used_bytes(self) -> int:
        """Memory in use."""
        return self._current().used_bytes

    def power_watts(self) -> float | None:
        """Power as recorded."""
        return self._current().power_watts

    def counter_joules(self) -> float | None:
        """The energy counter as recorded."""
        return self._current().counter_joules

    def now_seconds(self) -> float:
        """Seconds of the recording that have passed."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Move on in the recording; after its last sample it stays as it is."""
        self._now += seconds

    def _current(self) -> Sample:
        # half a nanosecond: sums of sleeps land next to the sample they mean
        return self.samples[bisect_right(self._times, self._now + 5e-10) - 1]

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a recording.

        Raises:
            InputError: the file cannot be read, or is no recording.
        """
        try:
            data = json.loads(Path(path).read_text())
            if data["schema"] != RECORDING_SCHEMA:
                raise ValueError(f"schema {data['schema']!r} is not {RECORDING_SCHEMA!r}")
            return cls(
                nvml_name=data["nvml_name"],
                memory_bytes=data["memory_bytes"],
                compute_capability=(
                    int(data["compute_capability"][0]),
                    int(data["compute_capability"][1]),
                ),
                samples=[Sample(**sample) for sample in data["samples"]],
                origin=data["origin"],
            )
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(
                f"{path} is not a device recording ({type(error).__name__}: {error});"
                " make one with profiler.devices.nvml.record"
            ) from error

    def save(self, path: Path | str) -> None:
        """Write the recording as JSON."""
        data = {
            "schema": RECORDING_SCHEMA,
            "nvml_name": self.nvml_name,
            "memory_bytes": self.memory_bytes,
            "compute_capability": self.compute_capability,
            "origin": self.origin,
            "samples": [asdict(sample) for sample in self.samples],
        }
        Path(path).write_text(json.dumps(data, indent=1) + "\n")


def record(
    gpu: Gpu, *, seconds: float, origin: str, period_seconds: float = POLL_SECONDS
) -> RecordedGpu:
    """Watch a GPU for a while."""
    start = gpu.now_seconds()
    samples: list[Sample] = []
    while True:
        at = gpu.now_seconds() - start
        samples.append(
            Sample(
                seconds=at if samples else 0.0,
                used_bytes=gpu.used_bytes(),
                power_watts=gpu.power_watts(),
                counter_joules=gpu.counter_joules(),
            )
        )
        if at >= seconds:
            break
        gpu.sleep(period_seconds)
    return RecordedGpu(
        nvml_name=gpu.nvml_name,
        memory_bytes=gpu.memory_bytes,
        compute_capability=gpu.compute_capability,
        samples=samples,
        origin=origin,
    )


# --- energy ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Energy of one window.

    Attributes:
        joules: of the board; None where it could not be told, and then `reason` says why.
        seconds: length of the window.
        method: "counter", "power" (integrated readings) or "none".
        resolution: what one period of the sensor is of the window, an estimate of the relative
            error from the ends of the window; None without a number.
        reason: why there is no number.
    """

    joules: float | None
    seconds: float
    method: str
    resolution: float | None = None
    reason: str | None = None

    @property
    def watts(self) -> float | None:
        """Average power of the window."""
        return None if self.joules is None else self.joules / self.seconds


class EnergyMeter:
    """Measures the energy of a ``with`` block; the result is `energy` afterwards.

    Args:
        gpu: what to measure.
        synchronize: called before either reading, so that queued kernels fall on their own side
            of it (`torch.cuda.synchronize`).
    """

    def __init__(self, gpu: Gpu, *, synchronize: Callable[[], None] | None = None) -> None:
        self._gpu = gpu
        self._synchronize = synchronize or (lambda: None)
        self._energy: Energy | None = None
        self._poller: _PowerPoller | None = None
        self._start_seconds = 0.0
        self._start_joules: float | None = None

    @property
    def energy(self) -> Energy:
        """What the last window took.

        Raises:
            DeviceError: no window has ended yet.
        """
        if self._energy is None:
            raise DeviceError("no window has been measured yet; read energy after the with block")
        return self._energy

    def __enter__(self) -> Self:
        self._energy = None
        self._synchronize()
        self._start_joules = self._gpu.counter_joules()
        self._start_seconds = self._gpu.now_seconds()
        if self._start_joules is None and self._gpu.power_watts() is not None:
            self._poller = _PowerPoller(self._gpu)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:  # after a failure the device may not answer
            self._synchronize()
        readings = self._poller.stop() if self._poller is not None else None
        self._poller = None
        seconds = self._gpu.now_seconds() - self._start_seconds
        if self._start_joules is not None:
            self._energy = _from_counter(self._start_joules, self._gpu.counter_joules(), seconds)
        elif readings is not None:
            self._energy = _from_readings(readings, seconds)
        else:
            self._energy = Energy(
                joules=None,
                seconds=seconds,
                method="none",
                reason="this GPU reports neither energy nor power",
            )


def _from_counter(start: float, end: float | None, seconds: float) -> Energy:
    reason = None
    if seconds < COUNTER_PERIOD_SECONDS:
        reason = _too_short(seconds)
    elif end is None or end < start:
        reason = "the energy counter was reset in the window"
    elif end == start:
        reason = f"the energy counter did not move in {seconds:.3g} s; measure a longer window"
    if reason is not None or end is None:
        return Energy(joules=None, seconds=seconds, method="counter", reason=reason)
    return Energy(
        joules=end - start,
        seconds=seconds,
        method="counter",
        resolution=COUNTER_PERIOD_SECONDS / seconds,
    )


def _from_readings(readings: Sequence[tuple[float, float]], seconds: float) -> Energy:
    reason = None
    if seconds < COUNTER_PERIOD_SECONDS:
        reason = _too_short(seconds)
    elif not readings or readings[-1][0] - readings[0][0] < _COVERED * seconds:
        reason = "the power reading failed in the window"
    if reason is not None:
        return Energy(joules=None, seconds=seconds, method="power", reason=reason)
    return Energy(
        joules=trapezoid_joules(readings),
        seconds=seconds,
        method="power",
        resolution=COUNTER_PERIOD_SECONDS / seconds,
    )


def _too_short(seconds: float) -> str:
    return (
        f"the window of {seconds * 1e3:.3g} ms is shorter than the sensor's period of about"
        f" {COUNTER_PERIOD_SECONDS * 1e3:.0f} ms; repeat the work until it takes longer"
    )


def trapezoid_joules(readings: Sequence[tuple[float, float]]) -> float:
    """Integrate (seconds, watts) in order of time by the trapezoid rule."""
    return sum((t1 - t0) * (p0 + p1) / 2 for (t0, p0), (t1, p1) in pairwise(readings))


class _PowerPoller:
    """Reads power in a thread of its own from its making until `stop`, once at either end too."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._readings: list[tuple[float, float]] = []
        self._stopped = threading.Event()
        self._read()
        self._thread = threading.Thread(target=self._run, name="power", daemon=True)
        self._thread.start()

    def stop(self) -> list[tuple[float, float]]:
        self._stopped.set()
        self._thread.join()
        self._read()
        return self._readings

    def _run(self) -> None:
        while not self._stopped.wait(POLL_SECONDS):
            self._read()

    def _read(self) -> None:
        watts = self._gpu.power_watts()
        if watts is not None:
            self._readings.append((self._gpu.now_seconds(), watts))
