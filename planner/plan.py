"""The plan file: one candidate, what is expected of it, what was seen, and where numbers came from.

    write_plan   writes atomically: a reader sees the old file or the new one, never half of one
    read_plan    treats the file as a stranger's: JSON only, a size limit, every field checked
    plan_file_name   readable, the same for the same candidate, different for different ones

No torch here: a plan is read, shown and compared by commands that need none. Whether its model
still exists and still looks the same is asked by ``planner.training.trained_model.check_against_model``.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, get_args

from planner.json_files import read_json, write_json
from planner.scoring.accuracy_prior import Kind as EstimateKind
from planner.scoring.netscore import Scores
from profiler.errors import InputError
from profiler.records import MEASURED, Report
from profiler.workload import Candidate

SCHEMA = "budgetplan.plan/1"

KINDS = ("measured", *get_args(EstimateKind), "none")

PACKAGES = ("budgetplan", "torch", "timm", "peft")

_NOT_IN_FILE_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """An accuracy with its origin; the two are never shown apart.

    Attributes:
        value: fraction of held-out images, None where nothing is known.
        source: where the value comes from, or why there is none.
        kind: ``measured``, ``published``, ``prior`` or ``none``.
    """

    value: float | None
    source: str
    kind: str

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"value": self.value, "source": self.source, "kind": self.kind}

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            InputError: the data is not an accuracy.
        """
        accuracy = _object("accuracy", data)
        value, source, kind = accuracy.get("value"), accuracy.get("source"), accuracy.get("kind")
        if value is not None and not (_is_number(value) and 0 <= value <= 1):
            raise InputError(f"the plan's accuracy must be a fraction or null, got {value!r}")
        if not isinstance(source, str) or kind not in KINDS:
            raise InputError(
                f"the plan's accuracy needs a source and a kind of {', '.join(KINDS)}, "
                f"got {source!r} and {kind!r}"
            )
        if (kind == "none") != (value is None):
            raise InputError(f"the plan's accuracy is of kind {kind!r} and has value {value!r}")
        return cls(value=value, source=source, kind=str(kind))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run, and what is known of it.

    Attributes:
        candidate: what to run.
        prediction: what is expected of a step.
        measurement: what a real run showed; None when there was none.
        scores: NetScore and its variants; None when no accuracy is known.
        accuracy: with its origin.
        budget_bytes: the budget it was chosen under.
        provenance: versions, time, study, weights, data, and a sentence on every number's origin.
    """

    candidate: Candidate
    prediction: Report
    measurement: Report | None = None
    scores: Scores | None = None
    accuracy: Accuracy
    budget_bytes: int
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))

    def to_json(self) -> dict[str, Any]:
        """Return plain data, as in the file and in ``recommend --json``."""
        return {
            "schema": SCHEMA,
            "candidate": self.candidate.to_json(),
            "prediction": self.prediction.to_json(),
            "measurement": None if self.measurement is None else self.measurement.to_json(),
            "scores": None if self.scores is None else self.scores.to_json(),
            "accuracy": self.accuracy.to_json(),
            "budget_bytes": self.budget_bytes,
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            InputError: the data is not a plan; says which part.
        """
        plan = _object("file", data)
        if plan.get("schema") != SCHEMA:
            raise InputError(f"not a plan: the schema is {plan.get('schema')!r}, want {SCHEMA!r}")
        missing = sorted({f.name for f in fields(cls)} - set(plan))
        if missing:
            raise InputError(f"the plan has no {missing[0]!r}")
        budget = plan["budget_bytes"]
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
            raise InputError(f"the plan's budget_bytes must be a positive integer, got {budget!r}")
        candidate = Candidate.from_json(plan["candidate"])
        prediction = _report("prediction", plan["prediction"], candidate)
        measured = plan["measurement"]
        return cls(
            candidate=candidate,
            prediction=prediction,
            measurement=None if measured is None else _report("measurement", measured, candidate),
            scores=None if plan["scores"] is None else _scores(plan["scores"]),
            accuracy=Accuracy.from_json(plan["accuracy"]),
            budget_bytes=budget,
            provenance=_object("provenance", plan["provenance"]),
        )


def _report(part: str, data: object, candidate: Candidate) -> Report:
    report = Report.from_json(_object(part, data))
    if (report.rung == MEASURED) != (part == "measurement"):
        raise InputError(f"the plan's {part} is of rung {report.rung!r}")
    if report.candidate != candidate:
        raise InputError(f"the plan's {part} is of another candidate than the plan")
    for name, value in (
        ("peak_bytes", report.memory.peak_bytes),
        ("step_seconds", report.step_seconds),
        ("energy_joules", report.energy_joules),
        ("parameters", report.parameters.total),
    ):
        if value is not None and value < 0:
            raise InputError(f"the plan's {part} has a negative {name}: {value!r}")
    return report


def _scores(data: object) -> Scores:
    given = _object("scores", data)
    names = [f.name for f in fields(Scores)]
    for name in names:
        if given.get(name) is not None and not _is_number(given[name]):
            raise InputError(f"the plan's score {name} must be a number, got {given[name]!r}")
    return Scores(**{name: given.get(name) for name in names})


def _object(part: str, data: object) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise InputError(f"the plan's {part} must be a JSON object, got {type(data).__name__}")
    return dict(data)


def _is_number(value: object) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and math.isfinite(value)  # type: ignore[arg-type]


def with_placement(plan: Plan, prediction: Report, *, budget_bytes: int) -> Plan:
    """Return a plan for the same workload under another placement, of which nothing was measured.

    Args:
        plan: whose workload.
        prediction: of the candidate with the other placement.
        budget_bytes: what it was placed in.
    """
    return replace(
        plan,
        candidate=prediction.candidate,
        prediction=prediction,
        measurement=None,
        scores=None,
        accuracy=Accuracy(value=None, source="the placement was changed", kind="none"),
        budget_bytes=budget_bytes,
        provenance={**plan.provenance, "placement": "not the one of the plan it was made from"},
    )


# ---- files ---------------------------------------------------------------------------------------


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan; the file is there in full or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    write_json(plan.to_json(), path)


def read_plan(path: Path) -> Plan:
    """Read a plan file that anybody may have written.

    Raises:
        InputError: missing, no regular file, too large, not JSON, or not a plan.
    """
    data = read_json(path, kind="plan")
    try:
        return Plan.from_json(data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def plan_file_name(candidate: Candidate) -> str:
    """Return a name such as ``vit_small_patch16_224-lora-r8-b16x4-bf16-adamw-none-1a2b3c4d.json``.

    The eight hexadecimal digits are of a hash over the whole candidate, so two candidates that
    differ in anything (a unit's decision, the targets) have different names.
    """
    load = candidate.workload
    digest = hashlib.sha256(json.dumps(candidate.to_json(), sort_keys=True).encode()).hexdigest()
    parts = [
        load.model,
        load.method + (f"-r{load.rank}" if load.rank is not None else ""),
        f"b{load.micro_batch}x{load.accumulation}",
        load.precision,
        load.optimizer,
        candidate.placement.policy,
    ]
    # a leading dot would hide the file, a leading dash would make it an option
    safe = _NOT_IN_FILE_NAMES.sub("_", "-".join(parts)).lstrip(".-")[:160]
    return f"{safe}-{digest[:8]}.json"


def versions() -> dict[str, str]:
    """Return the versions of what produced a plan, from installed metadata (nothing imported)."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
