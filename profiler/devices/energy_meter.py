"""Energy of a window of time, from a GPU's counter or its power readings.

From Volta on, the driver counts millijoules since it was loaded
(`nvmlDeviceGetTotalEnergyConsumption`), and the energy is the difference of two readings. On a GPU
without a counter (older GPUs, many vGPUs) a thread reads `nvmlDeviceGetPowerUsage`, and the
trapezoid rule integrates the readings.

Limitations:

- The counter changes about every 100 ms
  (https://ml.energy/blog/energy/measurement/thermally-stable-profiling-for-accurate-gpu-energy-measurement),
  so the error is about one period at either end of the window. `Energy.resolution` is that period's
  share of the window; windows shorter than a period are refused.
- On A100 and H100 the sensor samples a quarter of the time only (https://arxiv.org/abs/2312.02741),
  so windows should be long and repeated.
- From Ampere on, except on GA100, `nvmlDeviceGetPowerUsage` is an average over one second (NVML API
  reference).
- The whole board is measured, so the energy of other processes on it is included.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Protocol, Self

from profiler.errors import DeviceError

COUNTER_PERIOD_SECONDS = 0.1
"""Time between two changes of the energy counter (ml.energy, see above)."""

POLL_SECONDS = 0.05
"""Time between two power readings: half the period at which NVML's reading changes."""

_COVERED = 0.9
"""Share of a window that power readings must span; below it the energy is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Energy of a window of time.

    Attributes:
        joules: energy of the board; None if it is not known.
        seconds: length of the window.
        method: "counter", "power" (integrated readings) or "none".
        source: interface that was read, such as "nvml".
        resolution: one period of the sensor as a share of the window, which estimates the relative
            error at the ends of the window; None without ``joules``.
        reason: reason why ``joules`` is None.
    """

    joules: float | None
    seconds: float
    method: str
    source: str
    resolution: float | None = None
    reason: str | None = None

    @property
    def watts(self) -> float | None:
        """Average power of the window."""
        return None if self.joules is None else self.joules / self.seconds


class EnergySource(Protocol):
    """The readings of a device that a meter uses (``profiler.devices.nvml.Gpu`` has them)."""

    @property
    def source(self) -> str:
        """Interface that is read: "nvml", "rapl", or "zeus" with its version and kind of device."""

    def power_watts(self) -> float | None:
        """Present power; None if it cannot be read."""

    def counter_joules(self) -> float | None:
        """Energy since some moment; None if there is no counter."""

    def now_seconds(self) -> float:
        """A monotonic clock."""


class EnergyMeter:
    """Measures the energy of a ``with`` block; the result is `energy` afterwards.

    Args:
        gpu: GPU to measure, or the packages of a CPU.
        synchronize: function called before the first and the last reading, so that kernels queued
            before the block are not measured and those of the block are
            (`torch.cuda.synchronize`).
    """

    def __init__(self, gpu: EnergySource, *, synchronize: Callable[[], None] | None = None) -> None:
        self._gpu = gpu
        self._synchronize = synchronize or (lambda: None)
        self._energy: Energy | None = None
        self._poller: _PowerPoller | None = None
        self._start_seconds = 0.0
        self._start_joules: float | None = None

    @property
    def energy(self) -> Energy:
        """Energy of the last window.

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
        poller, self._poller = self._poller, None
        try:
            if error is None:  # after an error in the block, synchronizing may hang or raise
                self._synchronize()
        finally:
            readings = None if poller is None else poller.stop()
        seconds = self._gpu.now_seconds() - self._start_seconds
        if self._start_joules is not None:
            self._energy = _from_counter(
                self._start_joules, self._gpu.counter_joules(), seconds, self._gpu.source
            )
        elif readings is not None:
            self._energy = _from_readings(readings, seconds, self._gpu.source)
        else:
            self._energy = Energy(
                joules=None,
                seconds=seconds,
                method="none",
                source=self._gpu.source,
                reason="this GPU reports neither energy nor power",
            )


def _from_counter(start: float, end: float | None, seconds: float, source: str) -> Energy:
    reason = None
    if seconds < COUNTER_PERIOD_SECONDS:
        reason = _too_short(seconds)
    elif end is None or end < start:
        reason = "the energy counter was reset in the window"
    elif end == start:
        reason = f"the energy counter did not move in {seconds:.3g} s; measure a longer window"
    if reason is not None or end is None:
        return Energy(joules=None, seconds=seconds, method="counter", source=source, reason=reason)
    return Energy(
        joules=end - start,
        seconds=seconds,
        method="counter",
        source=source,
        resolution=COUNTER_PERIOD_SECONDS / seconds,
    )


def _from_readings(readings: Sequence[tuple[float, float]], seconds: float, source: str) -> Energy:
    reason = None
    if seconds < COUNTER_PERIOD_SECONDS:
        reason = _too_short(seconds)
    elif not readings or readings[-1][0] - readings[0][0] < _COVERED * seconds:
        reason = "the power reading failed in the window"
    if reason is not None:
        return Energy(joules=None, seconds=seconds, method="power", source=source, reason=reason)
    return Energy(
        joules=trapezoid_joules(readings),
        seconds=seconds,
        method="power",
        source=source,
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
    """Reads power in a thread, and once at the start and at `stop`."""

    def __init__(self, gpu: EnergySource) -> None:
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
