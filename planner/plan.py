"""The plan file: one candidate, its prediction, its measurement and the origin of every number.

    write_plan       writes atomically: a reader sees the old file or the new one, never a part
    write_new_plan   writes under a free name if there is a file of other content
    read_plan        validates every field: JSON only, a size limit, no unknown field
    plan_file_name   readable name, equal for equal candidates and different for different ones

This module imports no torch, because several commands read a plan and need no model.
``planner.training.plan_check.check_against_model`` compares a plan with its model.

Versions: ``schema`` names the major version, ``schema_minor`` (absent means 0) counts additions.
Files of major version 1 stay readable. Unknown fields of a newer minor version give one warning;
otherwise they are an error.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self, get_args

from msgspec import Meta

from planner.disk.drafts import write_under_free_name
from planner.disk.json_files import json_bytes, read_json_as, write_json
from planner.recipe import Recipe
from planner.scoring.accuracy_prior import EstimateKind
from planner.scoring.netscore import Scores
from profiler.devices.table import DEVICES, short_name
from profiler.errors import InputError
from profiler.json_records import (
    LARGEST_BYTES,
    ByteCount,
    Fraction,
    JsonObject,
    NonNegativeInt,
    check_schema,
    json_object,
    read_record,
    shortened,
    warn_of_dropped,
)
from profiler.records import DeviceLabel, Report, Rung
from profiler.units import MIB
from profiler.workload import Candidate

PLAN_FILE = "plan.json"
"""Name of the plan in the folder of a training."""

PLAN_SCHEMA = "budgetplan.plan/1"

PLAN_SCHEMA_MINOR = 11
"""1 added ``schema_minor`` itself (files without it are of minor version 0); 2 ``recipe``; 3 the
interval of an accuracy, and ``rehearsal``; 4 origin and interval of seconds and joules; 5
``candidate.kind`` (files without it are of kind ``tuned``); 6
``levers`` of the workload; 7 power limits; 8
``fits``; 9 decisions ``offload`` and ``recompute-from-host``, and ``host_bytes``; 10 ``fits`` of
plans without fine-tuning; 11 ``host_decides`` of a prediction."""

_NOT_CONTENT = ("made_at", "study", "storage")
"""Entries of ``provenance`` in which equal plans may differ: a question that is asked again has the
time and the dated study of its own."""

CandidateKind = Literal["tuned", "features", "zero_shot"]
"""A candidate that is fine-tuned, one whose frozen features get a probe, or one that classifies as
it is (``planner.training_free.plan_file`` has the last two)."""

AccuracyKind = Literal["measured", EstimateKind, "none"]

SMALLEST_BUDGET = MIB
"""No model trains in less."""

BudgetBytes = Annotated[int, Meta(ge=SMALLEST_BUDGET, le=LARGEST_BYTES)]

PACKAGES = ("budgetplan", "torch", "timm", "peft")

_PART_OF = {Rung.MEASURED: "measurement", Rung.EMULATED: "rehearsal"}
"""Part of a plan that holds a report of a rung; all others are predictions."""

_NOT_IN_FILE_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """An accuracy and its origin, which are always shown together.

    Attributes:
        value: fraction of held-out images classified correctly; None if unknown.
        source: origin of the value, or the reason why there is none.
        kind: ``measured``, ``published``, ``prior``, ``probe``, ``learned`` or ``none``.
        low: lower end of the interval; None without one.
        high: upper end of the interval; None without one.
        coverage: probability with which the interval is expected to hold the accuracy; None
            without an interval.
    """

    value: Fraction | None
    source: str
    kind: AccuracyKind
    low: Fraction | None = None
    high: Fraction | None = None
    coverage: Fraction | None = None

    def __post_init__(self) -> None:
        interval = (self.low, self.high, self.coverage)
        if None in interval and interval != (None, None, None):
            raise InputError(f"an interval has low, high and coverage, or none, got {interval}")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise InputError(f"an interval begins below its end, got {self.low} to {self.high}")
        if (self.kind == "none") != (self.value is None):
            raise InputError(
                f"an accuracy has kind 'none' if and only if its value is null, "
                f"got kind {self.kind!r} and value {self.value!r}"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of the plan file."""
        return {
            "value": self.value,
            "source": self.source,
            "kind": self.kind,
            "low": self.low,
            "high": self.high,
            "coverage": self.coverage,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class FitProbability:
    """The probability that a training fits its budget (`planner.cost.fit_probability`).

    Attributes:
        probability: least probability, from the errors of predictions that were compared with runs.
        compared: number of these runs.
        kind: kind of the predictions: for GPUs, in bf16 for GPUs before Ampere, or for a CPU.
        context_bytes: CUDA context that was assumed to be taken from the budget.
        notes: sentences on the limits of the evidence.
    """

    probability: Fraction
    compared: NonNegativeInt
    kind: str
    context_bytes: ByteCount
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {**asdict(self), "notes": list(self.notes)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A candidate to train, with its prediction and, after a real run, its measurement.

    Attributes:
        candidate: workload and placement to train.
        prediction: predicted memory, time and energy per step.
        measurement: report of a real run; None without one.
        rehearsal: report of a run on an emulated GPU, with real memory alone; None
            without one.
        scores: NetScore and its variants; None when no accuracy is known.
        accuracy: accuracy with its origin.
        budget_bytes: device bytes of the budget that the candidate was chosen under.
        fits: probability that the training fits the budget; None in plans before minor version 8,
            and where it is not known.
        recipe: how to train the candidate; None in plans before minor version 2, which train as
            when they were written.
        provenance: versions, time, study, weights, data, and the origin of every number.
    """

    candidate: Candidate
    prediction: Report
    measurement: Report | None = None
    rehearsal: Report | None = None
    scores: Scores | None = None
    accuracy: Accuracy
    budget_bytes: BudgetBytes
    fits: FitProbability | None = None
    recipe: Recipe | None = None
    provenance: JsonObject = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))

    def require_recipe(self) -> Recipe:
        """Return the recipe.

        Raises:
            InputError: the plan was written before plans had recipes.
        """
        if self.recipe is None:
            raise InputError(
                "the plan has no recipe, because it was written before plans had one; make a new "
                "plan by `budgetplan recommend`"
            )
        return self.recipe

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of the plan file and of ``recommend --json``."""
        return {
            "schema": PLAN_SCHEMA,
            "schema_minor": PLAN_SCHEMA_MINOR,
            "candidate": {"kind": "tuned", **self.candidate.to_json()},
            "prediction": self.prediction.to_json(),
            "measurement": None if self.measurement is None else self.measurement.to_json(),
            "rehearsal": None if self.rehearsal is None else self.rehearsal.to_json(),
            "scores": None if self.scores is None else self.scores.to_json(),
            "accuracy": self.accuracy.to_json(),
            "budget_bytes": self.budget_bytes,
            "fits": None if self.fits is None else self.fits.to_json(),
            "recipe": None if self.recipe is None else self.recipe.to_json(),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Read the object that ``to_json`` returns, from a file of unknown origin.

        Raises:
            InputError: the data is not a plan. The message names the field.
        """
        given = json_object(data, part="plan")
        dropped = check_schema(given, PLAN_SCHEMA, minor=PLAN_SCHEMA_MINOR, part="plan")
        for name in ("candidate", "prediction", "measurement", "scores", "provenance"):
            if name not in given:
                raise InputError(f"plan.{name}: missing field")
        kind = plan_kind(given)
        if kind != "tuned":
            raise InputError(
                f"it is a plan of kind {kind!r}, which fine-tunes nothing: only {_COMMANDS[kind]} "
                "take it"
            )
        del given["schema"]
        given.pop("schema_minor", None)
        candidate = json_object(given["candidate"], part="plan.candidate")
        candidate.pop("kind", None)
        given["candidate"] = Candidate.from_json(candidate, part="plan.candidate", dropped=dropped)
        given["prediction"] = _report("prediction", given, dropped)
        for name in ("measurement", "rehearsal"):
            if given.get(name) is not None:
                given[name] = _report(name, given, dropped)
        plan = read_record(cls, given, part="plan", dropped=dropped)
        check_provenance(plan.provenance)
        warn_of_dropped(dropped, part="plan")
        return plan


_COMMANDS = {
    "features": "`show`, `report`, `train`, `evaluate` and `classify`",
    "zero_shot": "`show`, `report` and `evaluate`",
}
"""Commands that take a plan without fine-tuning, by its kind."""


def plan_kind(data: object) -> CandidateKind:
    """Return the kind of the candidate in the object of a plan file.

    Raises:
        InputError: the kind is unknown, or the object has no candidate.
    """
    given = json_object(data, part="plan")
    if "candidate" not in given:
        raise InputError("plan.candidate: missing field")
    kind = json_object(given["candidate"], part="plan.candidate").get("kind", "tuned")
    for known in get_args(CandidateKind):
        if kind == known:
            found: CandidateKind = known
            return found
    raise InputError(
        f"plan.candidate.kind: expected one of {', '.join(get_args(CandidateKind))}, "
        f"got {shortened(kind)}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _HostPrediction:
    """Replay for the CPU of a run that took place on the CPU in place of the planned GPU."""

    peak_bytes: ByteCount | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _KnownProvenance:
    """The entries of a provenance that this program reads; all others are shown only."""

    data: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    host_prediction: _HostPrediction | None = None
    risk: Annotated[float, Meta(gt=0, le=0.5)] = 0.01


def check_provenance(provenance: Mapping[str, Any]) -> None:
    """Refuse a provenance whose entries that this program reads are of another type."""
    names = ("data", "host_prediction", "risk")
    known = {name: provenance[name] for name in names if name in provenance}
    read_record(_KnownProvenance, known, part="plan.provenance", dropped=[])


def planned_data(provenance: Mapping[str, Any]) -> str:
    """Return the data set or folder that a plan was made for.

    Raises:
        InputError: the plan does not say.
    """
    name = provenance.get("data")
    if name is None:
        raise InputError(
            "the plan does not say which images it was made for; name them: --data, or in Python "
            "the parameter data"
        )
    return str(name)


def check_device(device: DeviceLabel, part: str) -> None:
    """Refuse a device that exists nowhere.

    The name of a GPU that the device table lacks is made of the name that its driver reports.
    """
    known = DEVICES.get(device.name)
    if known is None and (device.kind == "cpu" or short_name(device.full_name) != device.name):
        raise InputError(
            f"{part}: no such device {shortened(device.name)}; `budgetplan devices` lists them"
        )
    if known is not None and known.is_cuda != (device.kind == "cuda"):
        raise InputError(f"{part}: {device.name} is not of kind {device.kind!r}")


def _report(name: str, plan: Mapping[str, Any], dropped: list[str] | None) -> Report:
    part = f"plan.{name}"
    report = Report.from_json(plan[name], part=part, dropped=dropped)
    if _PART_OF.get(report.rung, "prediction") != name:
        raise InputError(f"{part}.rung: a {name} cannot have rung {report.rung.value!r}")
    if not _may_report_on(report.candidate, plan["candidate"], name=name):
        raise InputError(
            f"{part}: it is of another candidate than plan.candidate{_first_change(report, plan)}; "
            "numbers hold for their own candidate: undo the edit, or make a plan anew"
        )
    check_device(report.device, f"{part}.device")
    return report


def _first_change(report: Report, plan: Mapping[str, Any]) -> str:
    """Return the first field in which a report's workload is not the plan's, in brackets."""
    own, planned = asdict(report.candidate.workload), asdict(plan["candidate"].workload)
    for name, value in own.items():
        if value != planned[name]:
            return f" ({name} {shortened(value)}, not {shortened(planned[name])})"
    return " (the placement)"


def _may_report_on(reported: Candidate, planned: Candidate, *, name: str) -> bool:
    """Return whether a prediction or measurement is one of the planned candidate.

    A CPU runs an fp16 plan in fp32 in place of the planned GPU, and the measurement says fp32.
    """
    if reported == planned:
        return True
    in_fp32 = replace(planned, workload=planned.workload.replace(precision="fp32"))
    is_fp16 = planned.workload.precision == "fp16"
    return name == "measurement" and is_fp16 and reported == in_fp32


def with_placement(plan: Plan, prediction: Report, *, budget_bytes: int) -> Plan:
    """Return a plan for the same workload under another placement, without a measurement.

    Args:
        plan: plan with the workload.
        prediction: report of the candidate with the other placement.
        budget_bytes: device bytes of the budget that the placement was made for.
    """
    return replace(
        plan,
        candidate=prediction.candidate,
        prediction=prediction,
        measurement=None,
        rehearsal=None,
        fits=None,
        scores=None,
        accuracy=Accuracy(value=None, source="the placement was changed", kind="none"),
        budget_bytes=budget_bytes,
        provenance={**plan.provenance, "placement": "not the one of the plan it was made from"},
    )


# ---- files ---------------------------------------------------------------------------------------


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan atomically.

    Raises:
        InputError: the file cannot be written.
    """
    write_json(plan.to_json(), path)


def write_new_plan(plan: Plan, path: Path) -> Path:
    """Write a plan without losing a file of other content; return the path of the plan.

    If there is a file already, the plan gets the next free name: ``NAME-2.json``, ``NAME-3.json``.
    A file that holds the same plan, made at another time or by another study, is left as it is.

    Raises:
        InputError: the file cannot be written.
    """
    return write_under_free_name(
        path, json_bytes(plan.to_json()), is_same=lambda place: _is_same_plan(plan, place)
    )


def check_replaceable(path: Path, plan: Plan) -> None:
    """Refuse to replace a file that is no plan for the same candidate.

    Raises:
        InputError: there is such a file.
    """
    if not path.exists() and not path.is_symlink():
        return
    try:
        is_same = read_plan(path).candidate == plan.candidate
    except InputError:
        is_same = False
    if not is_same:
        raise InputError(
            f"{path} exists and is no plan for this candidate; remove it, or give another --out"
        )


def _is_same_plan(plan: Plan, path: Path) -> bool:
    """Return whether a file holds a plan that differs at most in its time and its study."""
    try:
        there = read_plan(path)
    except InputError:
        return False
    return plan_content(there.to_json()) == plan_content(plan.to_json())


def plan_content(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return the object of a plan file as it is read again, without time and study."""
    provenance = {k: v for k, v in plan["provenance"].items() if k not in _NOT_CONTENT}
    read: dict[str, Any] = json.loads(json_bytes({**plan, "provenance": provenance}))
    return read


def read_plan(path: Path) -> Plan:
    """Read a plan file of unknown origin.

    Raises:
        InputError: the file is missing, not a regular file, too large, not JSON, or not a plan.
    """
    inner = path / PLAN_FILE
    if path.is_dir() and inner.is_file():
        raise InputError(f"{path} is a folder; its plan is {inner}")
    return read_json_as(path, Plan.from_json, kind="plan")


def plan_file_name(candidate: Candidate, *, with_model: bool = True) -> str:
    """Return a name such as ``vit_small_patch16_224-lora-r8-b16x4-bf16-adamw-none-1a2b3c4d.json``.

    The eight hexadecimal digits are a hash of the whole candidate. Two candidates that differ in
    any field (a unit's decision, the targets) therefore have different names.

    Args:
        candidate: candidate of the plan.
        with_model: whether the name has the backbone, the optimizer and the policy, or is short,
            for the folder of a question.
    """
    workload = candidate.workload
    digest = hashlib.sha256(json.dumps(candidate.to_json(), sort_keys=True).encode()).hexdigest()
    parts = [
        workload.method + (f"-r{workload.rank}" if workload.rank is not None else ""),
        f"b{workload.micro_batch}x{workload.accumulation}",
        workload.precision,
    ]
    if with_model:
        parts = [workload.model, *parts, workload.optimizer, candidate.policy.display_name]
    # a leading dot would hide the file, a leading dash would make it an option
    safe = _NOT_IN_FILE_NAMES.sub("_", "-".join(parts)).lstrip(".-")[:160]
    return f"{safe}-{digest[:8]}.json"


def versions() -> dict[str, str]:
    """Return the versions of the packages that make a plan, from installed metadata.

    No package is imported.
    """
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
