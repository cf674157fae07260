"""Real runs of this machine, kept between commands, with the seconds of their steps.

``measure``, ``validate``, ``train`` and ``calibrate`` append to a file of JSON lines in the cache
folder. ``profiler.timing.corrections`` compares the runs with their predictions. No prediction is
stored, so a run stays usable when the coefficients change.

Only steady runs are kept: on a busy machine the two halves of a run disagree. A line that cannot be
read is skipped. A file that cannot be written loses the run: a measurement never fails here, only a
calibration does, which is run for nothing else (``check_runs_file``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Literal

from profiler.devices.table import DeviceSpec, device_spec
from profiler.errors import BudgetplanError, InputError
from profiler.json_records import Name, PositiveFloat, read_record
from profiler.records import Report
from profiler.store import cache_folder, replace_file
from profiler.workload import Candidate

RUNS_FILE = "measured_runs.jsonl"

FEWEST_TIMED_STEPS = 4
"""Timed steps of a run that is kept: two in each half."""

LARGEST_DISAGREEMENT = 0.1
"""Share by which the medians of the two halves of a run may differ."""

MOST_KEPT_RUNS = 1000
"""Newest runs that are read; the file is cut to them when it has twice as many."""

LARGEST_RUNS_BYTES = 64 << 20

RunSource = Literal["measure", "validate", "train", "calibrate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The part of a machine that the seconds of a step depend on.

    Attributes:
        device: ``cpu``, or the GPU's name in the device table.
        driver: version of the GPU's driver; empty for a CPU.
        processor: model name of the CPU, whose speed a GPU's launches depend on.
        threads: threads of PyTorch's CPU kernels; 0 for a GPU.
        torch: version of PyTorch.
    """

    device: Name
    driver: str
    processor: str
    threads: int
    torch: str

    @property
    def key(self) -> tuple[object, ...]:
        """Plain data that identifies the machine in the store."""
        return (self.device, self.driver, self.processor, self.threads, self.torch)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRun:
    """A steady real run.

    Attributes:
        machine: where it ran.
        candidate: workload and placement.
        seconds: median seconds of a step.
        steps: number of timed steps.
        source: command that ran it.
        date: day of the run.
    """

    machine: Machine
    candidate: Candidate
    seconds: PositiveFloat
    steps: int
    source: RunSource
    date: str

    def to_json(self) -> dict[str, object]:
        """Return the JSON object of a line."""
        return {
            "machine": dict(zip(Machine.__dataclass_fields__, self.machine.key, strict=True)),
            "candidate": self.candidate.to_json(),
            "seconds": self.seconds,
            "steps": self.steps,
            "source": self.source,
            "date": self.date,
        }


def this_machine(device: DeviceSpec, *, cuda_index: int = 0) -> Machine | None:
    """Return this machine as the place of runs on a device; None if it lacks the device.

    Args:
        device: the device.
        cuda_index: CUDA's index of the GPU that runs, if the device is a GPU.
    """
    from profiler.devices.nvml import detect_gpu, driver_version
    from profiler.environment import processor_name

    driver = ""
    if device.is_cuda:
        gpu = detect_gpu(cuda_index)
        if gpu is None or gpu.spec.name != device.name:
            return None
        driver = driver_version() or ""
    return Machine(
        device=device.name,
        driver=driver,
        processor=processor_name(),
        threads=0 if device.is_cuda else _threads(),
        torch=version("torch"),
    )


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def disagreement(seconds: Sequence[float]) -> float | None:
    """Return by how much the halves of a run differ; None below ``FEWEST_TIMED_STEPS``.

    The steps are halved twice: into even and odd ones, and into the first and the last. The
    difference is that of the medians of the two halves, relative to the smaller; the larger of the
    two differences is returned. The second is that of a disturbance that began during the run.
    """
    if len(seconds) < FEWEST_TIMED_STEPS:
        return None
    half = len(seconds) // 2
    pairs = ((seconds[::2], seconds[1::2]), (seconds[:half], seconds[-half:]))
    medians = [sorted((median(first), median(second))) for first, second in pairs]
    if any(low <= 0 for low, _ in medians):
        return None
    return max(high / low - 1 for low, high in medians)


def check_runs_file() -> None:
    """Refuse a file of runs that cannot be written.

    Raises:
        InputError: the file cannot be written. The message names it.
    """
    try:
        path = cache_folder(RUNS_FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a", encoding="utf-8").close()
    except OSError as error:
        raise InputError(
            f"real runs cannot be kept: {error}; set BUDGETPLAN_CACHE to a folder that can be "
            "written"
        ) from error


def record_run(
    machine: Machine | None, candidate: Candidate, seconds: Sequence[float], *, source: RunSource
) -> bool:
    """Keep a run if it was steady; return whether it was kept.

    Args:
        machine: where it ran; None if the device is unknown, and nothing is then kept.
        candidate: workload and placement that ran.
        seconds: seconds of each timed step.
        source: command that ran it.
    """
    differs = disagreement(seconds)
    if machine is None or differs is None or differs > LARGEST_DISAGREEMENT:
        return False
    run = MeasuredRun(
        machine=machine,
        candidate=candidate,
        seconds=median(seconds),
        steps=len(seconds),
        source=source,
        date=datetime.now(UTC).date().isoformat(),
    )
    with suppress(OSError):
        path = cache_folder(RUNS_FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(run.to_json()) + "\n")
        return True
    return False


def record_report(report: Report, *, source: RunSource) -> None:
    """Keep the run of a measured report, if it was steady and its device is known here.

    A run under a power limit is not kept: a machine's runs are those of the board's own limit.
    """
    seconds = report.details.get("step_seconds")
    if not isinstance(seconds, list) or report.power_limit_watts is not None:
        return
    with suppress(BudgetplanError):  # a GPU that the device table lacks
        machine = this_machine(device_spec(report.device.name))
        record_run(machine, report.candidate, seconds, source=source)


def read_runs(machine: Machine) -> list[MeasuredRun]:
    """Return the kept runs of a machine, oldest first; of equal candidates the newest."""
    newest: dict[str, MeasuredRun] = {}
    for line in _lines()[-MOST_KEPT_RUNS:]:
        run = _run_of(line)
        if run is not None and run.machine == machine:
            key = json.dumps(run.candidate.to_json(), sort_keys=True)
            newest.pop(key, None)
            newest[key] = run
    return list(newest.values())


def _lines() -> list[str]:
    try:
        path: Path = cache_folder(RUNS_FILE)
        if path.stat().st_size > LARGEST_RUNS_BYTES:
            return []
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        if len(lines) > 2 * MOST_KEPT_RUNS:
            lines = lines[-MOST_KEPT_RUNS:]
            text = "\n".join(lines) + "\n"
            # Limitation: a run that another process appends meanwhile is lost.
            with suppress(OSError):
                replace_file(path, lambda file: file.write(text.encode()))
    except OSError:
        return []
    return lines


def _run_of(line: str) -> MeasuredRun | None:
    """Return the run of a line; None if somebody else wrote it or it is cut off."""
    try:
        data = json.loads(line)
        candidate = Candidate.from_json(data["candidate"], part="run", dropped=[])
        return read_record(MeasuredRun, data | {"candidate": candidate}, part="run", dropped=[])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, BudgetplanError):
        return None
