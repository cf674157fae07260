"""The outcome of a real run as the queue holds it: its result, or its error.

An outcome is a JSON object in a database that others write to, and is read as a file of unknown
origin.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from planner.workers.orders import unversioned, versioned
from profiler.errors import (
    BudgetplanError,
    DeviceError,
    InputError,
    MeasurementError,
    OutOfMemoryError,
    UsageError,
)
from profiler.json_records import ByteCount, NonNegativeFloat, PositiveInt, json_object, read_record
from profiler.records import Report

if TYPE_CHECKING:
    from planner.training.validation import Validation

OUTCOME_SCHEMA = "budgetplan.run_outcome/1"

LONGEST_WORKER = 200
"""Characters of the description of a worker."""


class DefectError(MeasurementError):
    """A run ended in an error of budgetplan's own, from which nothing follows about its plan."""

    kind = "internal"


RunKey = Annotated[str, Meta(pattern="^[0-9a-f]+$", max_length=64)]


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """A validation.

    Attributes:
        validation: memory, time, energy and accuracy of the run.
        host_prediction: replay for the CPU, if the run was on a CPU in place of the GPU.
        worker: worker that ran it, as text; empty if it ran here.
    """

    validation: Validation
    host_prediction: Report | None
    worker: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        host = self.host_prediction
        return versioned(
            OUTCOME_SCHEMA,
            validation=self.validation.to_json(),
            host_prediction=None if host is None else host.to_json(),
            worker=self.worker,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedMeasurement:
    """A measurement on random images.

    Attributes:
        report: memory, time and energy of a step, of rung ``measured``.
        worker: worker that ran it, as text; empty if it ran here.
    """

    report: Report
    worker: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return versioned(OUTCOME_SCHEMA, report=self.report.to_json(), worker=self.worker)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedProbe:
    """A probe or a learning-rate test, whose trainings are in the study.

    Attributes:
        keys: key of each training that counts, those of earlier probes included.
        earlier_runs: number of these.
        seconds: duration of this probe.
        reason: why it ended, one clause.
        failures: why a learner could not be trained, by its name.
        test_images: images of the test part, which are not read; None if it is not known.
    """

    keys: tuple[RunKey, ...]
    earlier_runs: int
    seconds: NonNegativeFloat
    reason: str
    failures: dict[str, str] = field(default_factory=dict)
    test_images: PositiveInt | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return versioned(
            OUTCOME_SCHEMA,
            probe=asdict(self) | {"keys": list(self.keys)},
        )


Finished = FinishedRun | FinishedMeasurement | FinishedProbe


@dataclass(frozen=True, slots=True, kw_only=True)
class _RunError:
    """An error of a run.

    Attributes:
        kind: kind of the error, as in ``budgetplan.error/1``.
        message: its message; for a run out of memory, that of the allocator.
        cap_bytes: memory cap, for a run out of memory.
    """

    kind: str
    message: str
    cap_bytes: ByteCount | None = None


def error_outcome(error: BudgetplanError) -> dict[str, Any]:
    """Return an error of a run as its outcome."""
    found = _RunError(kind=error.kind, message=str(error))
    if isinstance(error, OutOfMemoryError):
        found = _RunError(kind=error.kind, message=error.detail, cap_bytes=error.cap_bytes)
    return versioned(OUTCOME_SCHEMA, error=asdict(found))


def read_outcome(data: object) -> Finished | BudgetplanError:
    """Return the result or the error that an outcome holds.

    Raises:
        InputError: the data is no outcome.
    """
    given, dropped = unversioned(data, OUTCOME_SCHEMA, part="outcome")
    if "error" in given:
        found = read_record(_RunError, given["error"], part="outcome.error", dropped=dropped)
        return _as_error(found)
    if "probe" in given:
        return read_record(FinishedProbe, given["probe"], part="outcome.probe", dropped=dropped)
    if "report" in given:
        report = Report.from_json(given["report"], part="outcome.report", dropped=dropped)
        return FinishedMeasurement(report=report, worker=_worker_text(given))
    return _read_validation(given, dropped)


def _read_validation(given: dict[str, Any], dropped: list[str] | None) -> FinishedRun:
    from planner.training.validation import Validation

    run = json_object(given.get("validation"), part="outcome.validation")
    run["report"] = Report.from_json(run.get("report"), part="outcome.report", dropped=dropped)
    host = given.get("host_prediction")
    return FinishedRun(
        validation=read_record(Validation, run, part="outcome.validation", dropped=dropped),
        host_prediction=None
        if host is None
        else Report.from_json(host, part="outcome.host_prediction", dropped=dropped),
        worker=_worker_text(given),
    )


def _worker_text(given: dict[str, Any]) -> str:
    worker = given.get("worker", "")
    if not isinstance(worker, str) or not worker.isprintable():
        raise InputError("outcome.worker: expected a text of one line")
    return worker[:LONGEST_WORKER]


def _as_error(found: _RunError) -> BudgetplanError:
    if found.kind == OutOfMemoryError.kind:
        return OutOfMemoryError(cap_bytes=found.cap_bytes, detail=found.message)
    known = (UsageError, InputError, DeviceError, DefectError)
    kind = next((each for each in known if each.kind == found.kind), MeasurementError)
    return kind(found.message)
