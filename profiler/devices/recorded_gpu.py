"""A recording of a GPU's readings that stands in for the GPU, so that tests need none.

Pieces: `RecordedGpu` (the recording as a `profiler.devices.nvml.Gpu`), `record` (makes one).
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from profiler.devices.nvml import Gpu, spec_of
from profiler.devices.table import DeviceSpec
from profiler.errors import DeviceError, InputError

RECORDING_SCHEMA = "budgetplan.device-recording/1"

RECORD_PERIOD_SECONDS = 0.05
"""Half the period at which NVML's power reading changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """All readings at a moment.

    Attributes:
        seconds: time from the start of the recording.
        used_bytes: memory in use.
        power_watts: power of the board; None if it cannot be read.
        counter_joules: value of the energy counter; None if there is none.
    """

    seconds: float
    used_bytes: int
    power_watts: float | None
    counter_joules: float | None


class RecordedGpu:
    """A recording with the interface of a GPU. Its time passes only in `sleep`.

    A reading is that of the last sample at or before the present time, so a recorded counter keeps
    its value between updates, as a real one does.

    Args:
        nvml_name: name that the driver reported.
        memory_bytes: bytes of the GPU's memory.
        compute_capability: (major, minor).
        samples: samples in order of time, the first at 0 s.
        origin: machine and date of the recording, or the words that it is made up.

    Raises:
        InputError: the samples are not in order, or do not begin at 0 s.
    """

    source = "recording"

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
            raise InputError(
                f"a recording needs samples in order of time, the first at 0 s; got {times[:3]}"
            )
        self.nvml_name = nvml_name
        self.memory_bytes = memory_bytes
        self.compute_capability = compute_capability
        self.samples = tuple(samples)
        self.origin = origin
        self._times = times
        self._now = 0.0

    @property
    def spec(self) -> DeviceSpec:
        """Its row of the device table; for other GPUs the recording's data, without rates."""
        return spec_of(self)

    def used_bytes(self) -> int:
        """Bytes of memory in use."""
        return self._current().used_bytes

    def power_watts(self) -> float | None:
        """Recorded power in watts."""
        return self._current().power_watts

    def counter_joules(self) -> float | None:
        """Recorded value of the energy counter in joules."""
        return self._current().counter_joules

    def now_seconds(self) -> float:
        """Seconds since the start of the recording."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Advance the recording. After the last sample the readings stay the same."""
        self._now += seconds

    def _current(self) -> Sample:
        # Half a nanosecond is added because a sum of sleeps can fall just short of a sample's time.
        return self.samples[bisect_right(self._times, self._now + 5e-10) - 1]

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a recording.

        Raises:
            InputError: the file cannot be read, or has no recording.
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
                " make one with profiler.devices.recorded_gpu.record"
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
    gpu: Gpu, *, seconds: float, origin: str, period_seconds: float = RECORD_PERIOD_SECONDS
) -> RecordedGpu:
    """Record a GPU's readings.

    Args:
        gpu: the GPU.
        seconds: length of the recording.
        origin: machine and date, kept in the recording.
        period_seconds: time between two samples.

    Raises:
        DeviceError: the GPU does not report its memory.
    """
    if gpu.memory_bytes is None or gpu.used_bytes() is None:
        raise DeviceError(f"{gpu.nvml_name} does not report its memory and cannot be recorded")
    start = gpu.now_seconds()
    samples: list[Sample] = []
    while True:
        at = gpu.now_seconds() - start
        samples.append(
            Sample(
                seconds=at if samples else 0.0,
                used_bytes=gpu.used_bytes() or 0,
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
