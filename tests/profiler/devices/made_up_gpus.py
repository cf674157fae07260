"""Recorded GPUs for tests: power by a formula, from no real board."""

from __future__ import annotations

from profiler.devices.energy_meter import COUNTER_PERIOD_SECONDS
from profiler.devices.recorded_gpu import RecordedGpu, Sample
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
