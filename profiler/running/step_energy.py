"""Energy of a training step: several windows of repeated steps, each longer than the sensor needs.

The sensor of a GPU changes every 100 ms (``profiler.devices.energy_meter``), so a window of a few
short steps would mostly measure the sensor's period. Each window here lasts ``WINDOW_SECONDS``, ten
periods, unless that takes too long. The result is the median of the windows, with their number and
spread, so that a reader sees whether the reading was steady.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING

from profiler.json_records import NonNegativeFloat
from profiler.running.messages import Message

if TYPE_CHECKING:
    from profiler.devices.energy_meter import EnergyMeter

WINDOWS = 3

WINDOW_SECONDS = 1.0
"""Least time of a window. A step that takes longer is a window."""


class StepEnergy(Message, frozen=True, kw_only=True):
    """Energy of a step, and how it was measured.

    Attributes:
        joules: median over the windows; None if it is not known.
        windows: joules of a step in each window.
        steps: steps of a window.
        spread: largest minus smallest window, relative to the median; None for fewer than two.
        resolution: a period of the sensor as a share of a window; None without ``joules``.
        method: ``counter``, ``power`` (integrated readings) or ``none``.
        source: interface that was read: ``nvml``, ``rapl``, or ``zeus`` with its version and the
            kind of device; None if there was none.
        reason: reason why ``joules`` is None.
        idle_watts: power before this process used the device; None if it cannot be read.
        celsius: temperature of the GPU after the last window; None if it cannot be read.
    """

    joules: NonNegativeFloat | None
    windows: tuple[NonNegativeFloat, ...] = ()
    steps: int = 0
    spread: NonNegativeFloat | None = None
    resolution: NonNegativeFloat | None = None
    method: str = "none"
    source: str | None = None
    reason: str | None = None
    idle_watts: NonNegativeFloat | None = None
    celsius: float | None = None


def steps_in_window(step_seconds: float) -> int:
    """Return how many steps a window takes."""
    if step_seconds <= 0:
        return 1
    return max(1, math.ceil(WINDOW_SECONDS / step_seconds))


def measure_step_energy(
    run_step: Callable[[], object],
    meter: EnergyMeter,
    *,
    step_seconds: float,
    idle_watts: float | None = None,
) -> StepEnergy:
    """Repeat a step in several windows and return its energy.

    Args:
        run_step: runs one step.
        meter: meter of the device.
        step_seconds: seconds of a step.
        idle_watts: power before this process used the device.
    """
    steps = steps_in_window(step_seconds)
    windows: list[float] = []
    resolution = 0.0
    for _ in range(WINDOWS):
        with meter:
            for _ in range(steps):
                run_step()
        found = meter.energy
        if found.joules is None:
            return StepEnergy(
                joules=None,
                method=found.method,
                source=found.source,
                reason=found.reason,
                idle_watts=idle_watts,
            )
        windows.append(found.joules / steps)
        resolution = max(resolution, found.resolution or 0.0)
    middle = median(windows)
    return StepEnergy(
        joules=middle,
        windows=tuple(windows),
        steps=steps,
        spread=(max(windows) - min(windows)) / middle if middle > 0 else None,
        resolution=resolution,
        method=meter.energy.method,
        source=meter.energy.source,
        idle_watts=idle_watts,
    )
