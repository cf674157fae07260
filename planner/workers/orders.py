"""A real run as the queue holds it, and its outcome.

Both are JSON objects in a database that others write to, and are read as files of unknown origin.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from planner.cost.budget import needed_bytes
from planner.recipe import Recipe
from planner.training.run_options import RunOptions
from profiler.environment import processor_name
from profiler.errors import (
    BudgetplanError,
    DeviceError,
    InputError,
    MeasurementError,
    OutOfMemoryError,
    UsageError,
)
from profiler.json_records import (
    ByteCount,
    Name,
    NonNegativeFloat,
    PositiveInt,
    check_schema,
    json_object,
    read_record,
)
from profiler.records import DeviceLabel, Report
from profiler.workload import Candidate

if TYPE_CHECKING:
    from planner.training.validation import Validation

ORDER_SCHEMA, OUTCOME_SCHEMA = "budgetplan.run_order/1", "budgetplan.run_outcome/1"
"""Schemas of a run in the queue and of its outcome."""

QUEUE_MINOR = 0
"""Minor version of both schemas."""


class DefectError(MeasurementError):
    """A run ended in an error of budgetplan's own, from which nothing follows about its plan."""

    kind = "internal"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOrder:
    """A candidate to run for a few steps under a budget.

    Attributes:
        candidate: workload and placement.
        planned: device that the candidate is planned for.
        processor: processor of the machine that asks. A plan for its CPU runs on equal ones only.
        allows_cpu: whether a CPU may run it in place of a GPU.
        budget_bytes: budget in device bytes, the cap of the run.
        needed_bytes: device bytes that the replay predicts.
        step_seconds: predicted seconds of a step on the planned device; None if not known.
        recipe: recipe of the plan; None for the default one.
        data: name of a data set, or a folder.
        steps: number of steps; None for a few.
        seed: seed of the run.
        weights: file of weights, at the same path on every machine; None for none.
        weights_sha256: SHA-256 of that file.
        pretrained: whether timm's pretrained weights are loaded without a file.
    """

    candidate: Candidate
    planned: DeviceLabel
    processor: str
    allows_cpu: bool
    budget_bytes: ByteCount
    needed_bytes: ByteCount
    step_seconds: NonNegativeFloat | None = None
    recipe: Recipe | None = None
    data: Name
    steps: PositiveInt | None = None
    seed: int = 0
    weights: Name | None = None
    weights_sha256: Name | None = None
    pretrained: bool = True

    @classmethod
    def of(
        cls,
        candidate: Candidate,
        *,
        prediction: Report,
        budget_bytes: int,
        run: RunOptions,
        allows_cpu: bool,
        recipe: Recipe | None = None,
    ) -> Self:
        """Return the order of a run with these options; their device is that of this machine.

        Raises:
            InputError: the weights cannot be read.
        """
        from planner.training.trained_model import weights_file_of

        weights = weights_file_of(run.weights)
        return cls(
            candidate=candidate,
            planned=prediction.device,
            processor=processor_name(),
            allows_cpu=allows_cpu,
            budget_bytes=budget_bytes,
            needed_bytes=needed_bytes(prediction),
            step_seconds=prediction.step_seconds,
            recipe=recipe,
            data=run.data,
            steps=run.steps,
            seed=run.seed,
            weights=None if weights is None else weights.path,
            weights_sha256=None if weights is None else weights.sha256,
            pretrained=run.pretrained,
        )

    def options_on(self, device: str) -> RunOptions:
        """Return the options of the run on a device of this machine.

        Raises:
            InputError: the weights cannot be read, or are others than those of the order.
        """
        from planner.training.trained_model import weights_file_of

        weights = None if self.weights is None else Path(self.weights)
        found = weights_file_of(weights)
        if found is not None and found.sha256 != self.weights_sha256:
            raise InputError(f"{weights} holds other weights here than where the run was ordered")
        return RunOptions(
            device=device,
            data=self.data,
            steps=self.steps,
            seed=self.seed,
            weights=weights,
            pretrained=self.pretrained,
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "schema": ORDER_SCHEMA,
            "schema_minor": QUEUE_MINOR,
            **_fields(self, "candidate", "recipe", "planned"),
            "candidate": self.candidate.to_json(),
            "planned": asdict(self.planned),
            "recipe": None if self.recipe is None else self.recipe.to_json(),
        }

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Read the object that ``to_json`` returns.

        Raises:
            InputError: the data is no order.
        """
        given, dropped = _unversioned(data, ORDER_SCHEMA, part="order")
        given["candidate"] = Candidate.from_json(
            given.get("candidate"), part="order.candidate", dropped=dropped
        )
        return read_record(cls, given, part="order", dropped=dropped)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """A real run.

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
        return {
            "schema": OUTCOME_SCHEMA,
            "schema_minor": QUEUE_MINOR,
            "validation": self.validation.to_json(),
            "host_prediction": None if host is None else host.to_json(),
            "worker": self.worker,
        }


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
    return {"schema": OUTCOME_SCHEMA, "schema_minor": QUEUE_MINOR, "error": asdict(found)}


def read_outcome(data: object) -> FinishedRun | BudgetplanError:
    """Return the run or the error that an outcome holds.

    Raises:
        InputError: the data is no outcome.
    """
    from planner.training.validation import Validation

    given, dropped = _unversioned(data, OUTCOME_SCHEMA, part="outcome")
    if "error" in given:
        found = read_record(_RunError, given["error"], part="outcome.error", dropped=dropped)
        return _as_error(found)
    run = json_object(given.get("validation"), part="outcome.validation")
    run["report"] = Report.from_json(run.get("report"), part="outcome.report", dropped=dropped)
    host = given.get("host_prediction")
    worker = given.get("worker", "")
    if not isinstance(worker, str) or not worker.isprintable():
        raise InputError("outcome.worker: expected a text of one line")
    return FinishedRun(
        validation=read_record(Validation, run, part="outcome.validation", dropped=dropped),
        host_prediction=None
        if host is None
        else Report.from_json(host, part="outcome.host_prediction", dropped=dropped),
        worker=worker[:200],
    )


def _as_error(found: _RunError) -> BudgetplanError:
    if found.kind == OutOfMemoryError.kind:
        return OutOfMemoryError(cap_bytes=found.cap_bytes or 0, detail=found.message)
    known = (UsageError, InputError, DeviceError, DefectError)
    kind = next((each for each in known if each.kind == found.kind), MeasurementError)
    return kind(found.message)


def _unversioned(
    data: object, schema: str, *, part: str
) -> tuple[dict[str, Any], list[str] | None]:
    """Return the fields of an object without its schema, and the list for unknown ones."""
    given = json_object(data, part=part)
    dropped = check_schema(given, schema, minor=QUEUE_MINOR, part=part)
    return {k: v for k, v in given.items() if k not in ("schema", "schema_minor")}, dropped


def _fields(record: RunOrder, *without: str) -> dict[str, Any]:
    return {k: getattr(record, k) for k in RunOrder.__slots__ if k not in without}
